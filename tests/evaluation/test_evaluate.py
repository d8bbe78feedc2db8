"""Arms answer the same examples, and nothing but the arm changes an answer."""

import json
from dataclasses import replace

import pytest
import torch

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation import score_tables
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import batches, reader_of, wording
from latentwire.evaluation.evaluate import evaluate, prepare
from latentwire.evaluation.summarize import rows, summarize
from latentwire.lm.decoding import Decoding, DecodingSettings
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Example
from latentwire.lm.scoring.prefix_tree import Request
from latentwire.tasks.base import Task
from tests.support.models import tiny_lm, tiny_model, tiny_tokenizer

SPAN = [
    Example(
        id=f"span/{n}",
        group=f"g{n // 2}",
        context="Ada lives in the old town. " * (1 + n % 3),
        question="Where does Ada live?" if n % 2 else "Who lives in the town by the river?",
        answers=("the old town",),
        candidates=("the old town", "the river", "Bob", "Ada"),
    )
    for n in range(7)
]
CHOICE = [
    Example(
        id=f"choice/{n}",
        group=f"g{n}",
        context="Ada has 12 apples.",
        question="How many?",
        choices=("12", "five of them", "one two three", "7")[: 4 - n % 2],
        gold=n % 3,
    )
    for n in range(7)
]
SOLUTION = [
    Example(id=f"sum/{n}", group=f"s{n}", context="Ada has 12.", question="?", answers=(f"12 - 5 = 7 #### {n}",))
    for n in range(3)
]


def task(name, answer, examples, **options):
    return Task(name=name, answer=answer, source=lambda split: iter(examples), max_new_tokens=6, **options)


TASKS = [
    task("span", "span", SPAN),
    task("choices/one", "choice", CHOICE),
    task("choices/two", "choice", CHOICE),
    task("sums", "solution", SOLUTION),
]
WIRES = [wires.parse(spec) for spec in ("text", "text,mask=prefix", "none", "budget,tokens=3", "repeat", "leaky")]


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(max_position_embeddings=512)


@pytest.fixture(scope="module")
def result(lm):
    return evaluate(lm, TASKS, WIRES)


def test_every_arm_answers_the_same_examples_in_the_tasks_order(result):
    for wire in WIRES:
        for each in TASKS:
            found = [o.id for o in result.outcomes if (o.arm, o.task) == (wire.label, each.name)]
            assert found == [example.id for example in each.examples()]


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_outcomes_do_not_depend_on_the_batch(lm, result, batch_tokens):
    again = evaluate(lm, TASKS, WIRES, batch_tokens=batch_tokens)
    for one, two in zip(result.outcomes, again.outcomes, strict=True):
        assert (one.id, one.prediction, one.error, one.tokens) == (two.id, two.prediction, two.error, two.tokens)
        assert one.metrics == pytest.approx(two.metrics, abs=1e-4)


def test_a_limit_keeps_the_first_examples_with_the_same_outcomes(lm, result):
    few = evaluate(lm, TASKS, WIRES[:1], limit=2)
    whole = {(o.task, o.id): o for o in result.outcomes if o.arm == "text"}
    assert [o.id for o in few.outcomes if o.task == "span"] == ["span/0", "span/1"]
    for outcome in few.outcomes:
        assert outcome.prediction == whole[outcome.task, outcome.id].prediction


def test_a_choice_is_scored_as_one_forward_per_choice_would(lm, result):
    """The slow reference: every choice in a row of its own, no cache, no siblings."""
    wire = wires.parse("text,mask=prefix")
    for item in prepare(lm, TASKS[1], "test", None)[:4]:
        logprobs = []
        for answer in item.answers:
            forced = lm.forced(wire([item.prompt], lm), torch.tensor([answer]))
            chosen = lm.head(forced.hidden).log_softmax(-1).gather(-1, torch.tensor([answer])[..., None])
            logprobs.append(chosen.detach().sum().item())
        best = item.example.choices[logprobs.index(max(logprobs))]
        found = next(o for o in result.outcomes if (o.arm, o.id) == (wire.label, item.example.id))
        assert found.prediction == best
        gold = item.example.gold
        assert found.metrics["nll"] == pytest.approx(-logprobs[gold] / len(item.answers[gold]), abs=1e-4)


def test_generated_answers_are_what_the_model_generates_alone(lm, result):
    item = prepare(lm, TASKS[0], "test", None)[3]
    prefix = wires.parse("text")([item.prompt], lm)
    text = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=6, stop=("\n",)))[0].text.strip()
    assert next(o for o in result.outcomes if (o.arm, o.id) == ("text", "span/3")).prediction == text


def test_floors_and_tokens_are_reported(result):
    assert result.floors["choices/one"] == {"chance": pytest.approx((4 / 4 + 3 / 3) / 7)}
    assert result.floors["span"]["type_floor"] == 1.0
    read = {arm: sum(o.tokens for o in result.outcomes if o.arm == arm) for arm in ("none", "text", "repeat")}
    assert read["none"] < read["text"] < read["repeat"]


def test_the_leaky_arm_is_marked_and_its_loss_is_not_the_prefix_arms(result):
    shown = _text(score_tables.scores(result, ["leaky"]))
    assert "leaky LEAKS" in shown
    nll = {
        arm: [o.metrics["nll"] for o in result.outcomes if o.arm == arm and o.task == "choices/one"]
        for arm in ("leaky", "text,mask=prefix")
    }
    assert nll["leaky"] != nll["text,mask=prefix"]


def test_the_summary_has_every_arm_task_and_metric_and_is_json(result):
    summary = summarize(result.outcomes)
    assert list(summary) == [wire.label for wire in WIRES]
    assert list(summary["text"]) == ["span", "choices/one", "choices/two", "choices", "sums", "macro"]
    number = summary["text"]["choices"]["acc"]
    assert set(number) == {"value", "low", "high", "n"}
    assert number["n"] == 14
    members = [summary["text"][f"choices/{name}"]["acc"]["value"] for name in ("one", "two")]
    assert number["value"] == pytest.approx(sum(members) / 2)
    json.dumps(summary, allow_nan=False)


def test_families_follow_their_members():
    assert rows(["a", "choices/x", "choices/y", "b"]) == ["a", "choices/x", "choices/y", "choices", "b", "macro"]
    assert rows(["a"]) == ["a"]


def test_every_number_is_printed_with_its_interval_n_floor_and_baseline(result):
    shown = _text(score_tables.scores(result))
    assert "minus text" in shown
    assert shown.count("type_floor") == 1
    assert "[" in shown
    assert "macro" in shown
    assert "not in the passage" in _text(score_tables.errors(result)) or "unreadable" in _text(
        score_tables.errors(result)
    )


def test_a_prompt_that_does_not_fit_ends_the_evaluation_before_it_starts():
    lm = tiny_lm(max_position_embeddings=128)
    calls = []
    lm.model.register_forward_hook(lambda *_: calls.append(1))
    long = task(
        "long", "span", [*SPAN, Example(id="l", group="l", context="Ada " * 99, question="?", answers=("a",))]
    )
    with pytest.raises(UserError, match="l needs"):
        evaluate(lm, [TASKS[1], long], WIRES[:1])
    assert calls == []


def test_a_task_without_examples_is_refused(lm):
    with pytest.raises(UserError, match="no examples"):
        evaluate(lm, [task("empty", "span", [])], WIRES[:1])


def test_batches_hold_everything_once_and_stay_within_their_tokens(lm):
    items = prepare(lm, TASKS[0], "test", None)
    made = list(batches(items, 300))
    assert sorted(item.example.id for batch in made for item in batch) == sorted(e.id for e in SPAN)
    for batch in made:
        widest = max(item.prompt.tokens + sum(map(len, item.answers)) for item in batch)
        assert len(batch) == 1 or widest * len(batch) <= 300


def _text(table):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("spec", ["text", "text,mask=prefix", "text,mask=segments,layers=0-1", "repeat", "none"])
def test_choices_cost_hardly_more_than_the_fewest_tokens(lm, spec):
    wire = wires.parse(spec)
    examples = [replace(example, id=f"{example.id}/{n}") for n in range(40) for example in CHOICE]
    work = evaluate(lm, [task("many", "choice", examples)], [wire]).work[wire.label, "many"]
    assert work.least <= work.run <= 1.05 * work.least


@pytest.mark.parametrize("spec", ["text", "text,mask=prefix", "text,mask=segments", "repeat"])
def test_choices_read_together_are_answered_as_in_two_passes(lm, spec, monkeypatch):
    wire = wires.parse(spec)
    together = evaluate(lm, TASKS[1:2], [wire]).outcomes
    monkeypatch.setattr(Request, "of", classmethod(lambda *_: None))
    apart = evaluate(lm, TASKS[1:2], [wire])
    assert apart.work[wire.label, "choices/one"].run == 0
    for one, two in zip(together, apart.outcomes, strict=True):
        assert (one.id, one.prediction, one.tokens) == (two.id, two.prediction, two.tokens)
        assert one.metrics == pytest.approx(two.metrics, abs=1e-4)


def test_settings_of_a_task_and_of_an_arm_decide_how_answers_are_generated():
    lm, wire = tiny_lm(), wires.parse("text")
    (span,) = [task for task in TASKS if task.name == "span"]
    short = replace(span, decoding=DecodingSettings(max_new_tokens=1, stop=()))
    long = Arm(wire, decoding=DecodingSettings(max_new_tokens=12, min_new_tokens=12))
    result = evaluate(lm, [short], [Arm(wire), long])
    label = "text [max_new_tokens=12, min_new_tokens=12]"
    said = {arm: {o.id: o.prediction for o in result.outcomes if o.arm == arm} for arm in ("text", label)}
    assert said["text"].keys() == said[label].keys() == {example.id for example in SPAN}
    prefixes = lm.prefill(wire.bind(lm)([item.prompts[0] for item in prepare(lm, span, "test", None)], lm))
    for arm, how in (
        ("text", Decoding(max_new_tokens=1)),
        (label, Decoding(max_new_tokens=12, min_new_tokens=12)),
    ):
        assert list(said[arm].values()) == [made.text.strip() for made in lm.generate(prefixes, how)]
    assert said["text"] != said[label]


def test_a_sampled_answer_depends_on_its_example_alone():
    lm, wire = tiny_lm(), wires.parse("text")
    (span,) = [task for task in TASKS if task.name == "span"]
    hot = replace(span, decoding=DecodingSettings(temperature=2.0, max_new_tokens=8))
    first = {o.id: o.prediction for o in evaluate(lm, [hot], [wire]).outcomes}
    again = {o.id: o.prediction for o in evaluate(lm, [hot], [wire], batch_tokens=1).outcomes}
    assert first == again
    cold = {o.id: o.prediction for o in evaluate(lm, [span], [wire]).outcomes}
    assert first != cold
    calm = DecodingSettings(temperature=2.0, first_temperature=0.0, max_new_tokens=1)
    begun = {o.id: o.prediction for o in evaluate(lm, [replace(span, decoding=calm)], [wire]).outcomes}
    sure = replace(span, decoding=DecodingSettings(max_new_tokens=1))
    assert begun == {o.id: o.prediction for o in evaluate(lm, [sure], [wire]).outcomes}


def test_settings_that_do_not_go_together_are_refused_before_anything_is_read():
    (span,) = [task for task in TASKS if task.name == "span"]
    for settings, problem in (
        (DecodingSettings(min_new_tokens=90), "decoding: min_new_tokens: found 90, expected 0 to max_new_tokens"),
        (DecodingSettings(suppress_tokens={"the old town": 2}), "suppress_tokens: found 'the old town'"),
        (DecodingSettings(suppress_tokens={"a": 0}), "suppress_tokens: found 0 steps, expected >= 1"),
        (DecodingSettings(max_new_tokens=5000), "expected at most"),
    ):
        with pytest.raises(UserError, match=problem):
            evaluate(tiny_lm(), [replace(span, decoding=settings)], [wires.parse("text")])


def test_a_benchmarks_own_words_are_the_users_turn_of_a_chat_and_the_report_says_so():
    chat = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}[assistant]"
    lm = LM(tiny_model(), tiny_tokenizer(chat=chat), name="tiny")
    (span,) = [task for task in TASKS if task.name == "span"]
    worded = replace(span, format=PromptFormat(template="raw", anchor=""))
    assert wording(lm, span, "tiny") is None
    assert (
        wording(lm, worded, "tiny")
        == "span: asked in the benchmark's own words, not in the prompt format of tiny."
    )
    lm.format = PromptFormat(template="chat", instruction="Be brief.")
    assert (
        wording(lm, worded, "tiny") == "span: the benchmark's own words are the user's turn in the chat of tiny."
    )
    first = SPAN[0]
    asked = reader_of(lm, worded).format.tokens(first.context, first.question, lm).ids
    assert lm.tokenizer.decode(asked) == f"[user]Be brief.\n{first.context}{first.question}</s>[assistant]"


def test_answers_begin_with_no_suppressed_token_and_scores_stay():
    lm, plain = tiny_lm(), [wires.parse("text")]
    free = evaluate(lm, TASKS, plain).outcomes
    ids = lm.tokenizer([f" {each}" for each in ("the", "12")], add_special_tokens=False)["input_ids"]
    gold = [lm.decode(each[:1]) for each in ids]
    begun = {each.prediction[:1] for each in free if each.task == "span"}
    banned = tuple({*gold, *(word for word in lm.tokenizer.get_vocab() if lm.decode(
        lm.tokenizer.convert_tokens_to_ids([word])).strip()[:1] in begun)})  # fmt: skip
    made = evaluate(lm, TASKS, plain, begin_suppress_tokens=banned).outcomes
    assert [each.metrics["nll"] for each in made] == [each.metrics["nll"] for each in free]
    generated = [each for each in made if each.task in ("span", "sums")]
    assert not any(each.metrics["first_token_top5"] for each in generated)
    assert not {each.prediction[:1] for each in generated if each.task == "span"} & begun
    with pytest.raises(UserError, match="begin_suppress_tokens: found 'the old town'"):
        evaluate(lm, TASKS, plain, begin_suppress_tokens=("the old town",))
