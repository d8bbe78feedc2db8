"""What stands beside latents is the same in training and evaluation, wherever the message is of."""

import json
from dataclasses import replace
from typing import Literal

import pytest
import torch

from latentwire import wires
from latentwire.errors import UserError
from latentwire.evaluation import costs
from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import prepare
from latentwire.evaluation.eval_report import Report
from latentwire.evaluation.evaluate import evaluate
from latentwire.lm.prefix import pad_rows
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import Example, Prompt
from latentwire.tasks.world.tiers import ask_all
from latentwire.training.data import ContextExamples
from latentwire.training.data.task import TaskData
from latentwire.training.data.text import TextData
from latentwire.training.objectives import AnswerCrossEntropy, Contrast, Distill
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.wire.asking import Asking
from latentwire.training.wire.layout import settled
from latentwire.training.wire.part import collate
from latentwire.training.wire.passages import passages, tokenize
from latentwire.training.wire.teacher import Teacher
from latentwire.training.wire.train import train_wire
from latentwire.training.wire.wire_step import WireStep
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.adapters import BothConfig, DeepPrefixConfig, EmbeddingsConfig
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import fingerprint
from latentwire.wires.latent.reader_text import asking
from tests.support import models
from tests.support.fused_bridges import EXAMPLES, PROMPTS, TASK, bound, modules_of, source, stored, translated
from tests.support.wire_training import DATA

ADAPTERS = {
    "soft": EmbeddingsConfig(hidden=8),
    "keys": DeepPrefixConfig(hidden=8),
    "both": BothConfig(embeddings=EmbeddingsConfig(hidden=8), prefix=DeepPrefixConfig(hidden=8)),
}
LAYOUTS = [
    ("context", "question"),
    ("context", "text"),
    ("prompt", "question"),
    ("prompt", "text"),
    ("prompt", "only"),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """Its tokens run across the line breaks around the question."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "CORPUS", [*models.CORPUS, *["\nQ", "?\n"] * 20])
        found = stored(tmp_path_factory.mktemp("llama"), "llama", bos=True, merge_blanks=True)
    context, question = PROMPTS[0].context, PROMPTS[0].question
    parts = [*found.format.before(context, found), *found.format.after(question, found)]
    assert parts != found.format.tokens(context, question, found).ids
    return found


def config(lm, adapter="soft", **changes):
    found = changes.pop("adapters", {lm.name: ADAPTERS[adapter]})
    return LatentConfig(source="source", encoder=translated(), adapters=found, **changes)


def wire_of(lm, carry, layout, adapter="soft", control=None):
    return bound(modules_of(config(lm, adapter, carry=carry, layout=layout), lm), lm, control)


def hidden(lm, prefix):
    with torch.no_grad():
        return lm.forced(prefix, pad_rows([[5, 6, 7]] * len(prefix.columns.valid), -100)).hidden


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(("carry", "layout"), LAYOUTS)
def test_a_row_reads_the_same_alone_and_in_a_batch(lm, carry, layout, adapter):
    wire = wire_of(lm, carry, layout, adapter)
    together = hidden(lm, wire(PROMPTS, lm))
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(hidden(lm, wire([prompt], lm))[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("carry", ["context", "prompt"])
def test_under_layout_text_the_prompts_own_tokens_follow_the_latents(lm, carry, adapter):
    wire = wire_of(lm, carry, "text", adapter)
    message = wire.encode(wire.carried(PROMPTS, lm))
    prefix = wire.deliver(message, PROMPTS, lm)
    for row, prompt in enumerate(PROMPTS):
        count, own = int(message.valid[row].sum()), lm.format.tokens(prompt.context, prompt.question, lm).ids
        places = [prefix.columns] if prefix.memory is None else [prefix.memory.columns, prefix.columns]
        found = [at for each in places for at in each.positions[row][each.valid[row]].tolist()]
        once = [*range(count), *range(count, count + len(own))]
        assert found == ([*range(count), *once] if adapter == "both" else once)
        if prefix.ids is not None:
            assert prefix.ids[row][prefix.columns.valid[row]].tolist() == own
        else:
            last = prefix.embeddings[row][prefix.columns.valid[row]][-len(own) :]
            torch.testing.assert_close(last, lm.embed(torch.tensor(own)).detach())


def test_only_the_anchor_stands_behind_latents_of_a_whole_prompt(lm):
    wire = wire_of(lm, "prompt", "only", "keys")
    prefix = wire(PROMPTS, lm)
    assert {lm.decode(row.tolist()) for row in prefix.ids} == {"\nAnswer:"}
    assert wire.carried(PROMPTS[:1], lm) == [f"{PROMPTS[0].context}\nQuestion: {PROMPTS[0].question}"]
    raw = Asking(lm.tokenizer, PromptFormat(template="raw"), "raw", lm.eos_ids)
    assert lm.decode(raw.format.ending(raw)) == "\nAnswer:"
    with pytest.raises(UserError, match="no anchor"):
        PromptFormat(template="raw", anchor="").ending(raw)


@pytest.mark.parametrize("template", ["question", "raw", "chat"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("context", ["Ada lives here.\n", ""])
def test_a_prompt_in_two_parts_is_the_prompt(lm, template, whole, context):
    how, own = PromptFormat(template=template), lm.tokenizer.chat_template
    lm.tokenizer.chat_template = "U {% for m in messages %}{{ m['content'] }}{% endfor %} A "
    try:
        before, after = how.split(context, "Who lives there?", lm, whole=whole)
        assert [*before, *after] == how.tokens(context, "Who lives there?", lm).ids
        assert after
        assert ("lives there" in lm.decode(before)) is whole
    finally:
        lm.tokenizer.chat_template = own


@pytest.mark.parametrize(("carry", "layout"), LAYOUTS)
def test_a_wire_is_trained_on_what_it_is_evaluated_with(lm, carry, layout):
    """The student of a step reads what the wire delivers for the same prompt, answer tokens included."""
    built = config(lm, carry=carry, layout=layout)
    modules = modules_of(built, lm)
    found = passages(DATA, {lm.name: lm}, "train", 2, built)
    examples = ask_all(DATA.tiers, 0)
    asked = [0, 1] if carry == "context" else [0]
    part = collate(found[:1], [asked], {lm.name: lm.device}, ["0"])
    terms = (AnswerCrossEntropy(),)
    step = WireStep(modules, {lm.name: lm}, {lm.name: Teacher(lm, print)}, terms, Adapting(terms))
    with torch.no_grad():
        one = step.evidence(part)[0]
        at = 0
        for number in asked:
            prompt = Prompt(context=examples[number].context, question=examples[number].question)
            answer = found[0].pairs[lm.name][number][1]
            evaluated = lm.forced(bound(modules, lm)([prompt], lm), torch.tensor([answer])).hidden[0]
            torch.testing.assert_close(one.student.hidden[at : at + len(answer)], evaluated, atol=1e-4, rtol=0)
            if layout == "text" or carry == "prompt":  # its teacher is the target alone, to the token
                alone = lm.forced(wires.parse("text")([prompt], lm), torch.tensor([answer])).hidden[0]
                torch.testing.assert_close(one.teacher.hidden[at : at + len(answer)], alone, atol=1e-4, rtol=0)
            at += len(answer)


def test_every_question_is_a_passage_of_its_own_where_prompts_are_carried(lm, tmp_path):
    built = config(lm, carry="prompt")
    plain = passages(DATA, {lm.name: lm}, "train", 4)
    found = passages(DATA, {lm.name: lm}, "train", sum(each.asked for each in plain), built)
    assert [each.asked for each in found] == [1] * len(found)
    asked = [(each.asks(lm.name, 0), each.pairs[lm.name][0][1]) for each in found]
    assert asked == [pair for each in plain for pair in each.pairs[lm.name]]
    assert all("\nQuestion: " in each.context and "Answer:" not in each.context for each in found)
    assert len({each.context for each in found}) == len(found)
    assert [len(passages(DATA, {lm.name: lm}, split, 5, built)) for split in ("train", "validation")] == [5, 5]
    # A benchmark without contexts can go over such a wire, and over no other.
    lines = [
        {"id": str(n), "context": "", "question": f"What is {n} + 1?", "answers": [str(n + 1)]} for n in range(60)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = TaskData(kind="task", task="jsonl", data=tmp_path / "sums.jsonl")
    sums = passages(data, {lm.name: lm}, "train", 3, built)
    assert all(each.context.startswith("Question: What is") for each in sums)
    with pytest.raises(UserError, match="no context"):
        passages(data, {lm.name: lm}, "train", 3)


def test_readers_that_word_prompts_differently_cannot_share_a_message(lm):
    other = replace(Asking.of(lm), format=PromptFormat(template="raw"), name="other")
    built = config(lm, carry="prompt")
    both = {"one": Asking.of(lm, built), "other": replace(other, wire=built)}
    with pytest.raises(UserError, match="word a prompt differently"):
        tokenize([ContextExamples(EXAMPLES[:1])], both)


@pytest.mark.parametrize(("carry", "layout"), LAYOUTS)
def test_deranged_exchanges_the_message_and_no_text_beside_it(lm, carry, layout):
    arm = Arm(wire_of(lm, carry, layout), "deranged")
    met, items = arm.prepared(lm, TASK, prepare(lm, TASK, "test", None))
    carried = met.wire.carried([item.prompt for item in items], lm)
    for item, example, sent in zip(items, EXAMPLES, carried, strict=True):
        assert item.example.answers == example.answers
        assert item.prompt.question == example.question
        assert example.answers[0] not in sent
        assert (example.question in sent) is False
        # Beside text the reader's own stays; elsewhere the context is in the message only.
        assert layout != "text" or item.prompt.context == example.context
        assert any(other.context in sent for other in EXAMPLES if other != example)
        assert ("Question:" in sent) is (carry == "prompt")


def test_prompts_without_contexts_can_be_deranged_where_prompts_are_carried(lm):
    examples = [
        Example(id=f"{n}", group=f"{n}", context="", question=f"What is {n}{n} + 1?", answers=(f"{n}{n + 1}",))
        for n in range(1, 5)
    ]
    task = replace(TASK, source=lambda split: iter(examples))
    items = prepare(lm, task, "test", None)
    _, found = Arm(wire_of(lm, "prompt", "only"), "deranged").prepared(lm, task, items)
    assert all(item.prompt.sent.question != item.prompt.question for item in found)
    with pytest.raises(UserError, match="without one of their own"):
        Arm(wire_of(lm, "context", "question"), "deranged").prepared(lm, task, items)


@pytest.mark.parametrize(("carry", "layout"), LAYOUTS)
def test_counterfactual_changes_the_message_and_no_text_beside_it(lm, carry, layout):
    arm = Arm(wire_of(lm, carry, layout), "counterfactual")
    met, items = arm.prepared(lm, TASK, prepare(lm, TASK, "test", None))
    for item, sent in zip(items, met.wire.carried([item.prompt for item in items], lm), strict=True):
        assert item.original.answers[0] not in sent
        assert item.example.answers[0] in sent
        assert item.example.answers != item.original.answers
        if layout == "text":
            assert item.prompt.context == item.original.context
            assert item.example.answers[0] not in item.prompt.context


@torch.no_grad()
def test_mean_leaves_out_what_crosses_for_another_question_about_the_same_passage(lm):
    asked = [*EXAMPLES, replace(EXAMPLES[0], id="again", question="Who lives by the river?")]
    task = replace(TASK, source=lambda split: iter(asked))
    wire = wire_of(lm, "prompt", "only", control="mean")
    met, items = Arm(wire).prepared(lm, task, prepare(lm, task, "test", None))
    carried = met.wire.carried([item.prompt for item in items], lm)
    assert carried[0] != carried[4]
    found = [met.wire.encode([carried[at]]) for at in (0, 4)]
    count = min(each.valid.shape[1] for each in found)
    others = [wire.latents([each]).flat() for each in carried[1:4]]
    count = min(count, *(each.shape[1] for each in others))
    expected = torch.stack([each[0, :count] for each in others]).mean(0)
    for each in found:
        torch.testing.assert_close(each.flat()[0, :count], expected, atol=1e-5, rtol=0)


def test_every_table_says_which_messages_know_the_question(lm, monkeypatch):
    arms = [
        Arm(wires.parse("text")),
        Arm(wire_of(lm, "prompt", "text")),
        Arm(wire_of(lm, "prompt", "text"), "deranged"),
    ]
    monkeypatch.setattr("latentwire.wires.latent.latent_wire.Latent.bind", lambda self, lm: self)
    monkeypatch.setattr(costs, "REPEATS", 1)
    found = evaluate(lm, [TASK], arms)
    told = Report.of({None: lm}, [TASK], arms, found, None)
    parts = list(told.parts("tiny"))
    shown = ["text", "bridge QUESTION-AWARE", "bridge:deranged QUESTION-AWARE"]
    assert list(parts[0].columns[1].cells)[:3] == shown
    words = " ".join(each for each in parts if isinstance(each, str))
    assert "The question was in sight when bridge, bridge:deranged was encoded" in words
    assert "compressed without the question" not in words
    assert told.spent["bridge"]["towns"].pays_after is None
    assert not wire_of(lm, "context", "text").question_aware


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layout": "only"}, "expected carry: prompt"),
        ({"layout": "text", "positions": "spread"}, "expected contiguous"),
    ],
)
def test_layouts_that_no_reader_could_read_are_refused(lm, changes, told):
    with pytest.raises(ValueError, match=told):
        config(lm, **changes)


def test_an_objective_chooses_the_layout_where_the_wire_sets_none(lm, tmp_path):
    class Wanting(Contrast):
        kind: Literal["contrast"] = "contrast"

        @property
        def layout(self):
            return "only"

    def settings(**changes):
        wanting = (AnswerCrossEntropy(), Wanting())
        plain = WireTraining(wire=config(lm, **changes), data=DATA, steps=1, warmup_steps=0)
        return plain.model_copy(update={"objectives": wanting})

    said = []
    assert settled(settings(carry="prompt"), said.append).wire.layout == "only"
    assert said == ["layout: only, chosen by contrast"]
    assert settled(settings(carry="prompt", layout="text"), said.append).wire.layout == "text"
    assert settled(settings(), said.append).wire.shown == "question"
    text = settings(carry="prompt").model_copy(update={"data": TextData(kind="text", path=tmp_path / "x")})
    with pytest.raises(UserError, match="data: found kind text, which has no questions, under carry: prompt"):
        settled(text, said.append)
    assert len(said) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("carry", "layout"), LAYOUTS)
def test_each_layout_trains_and_leaves_its_models_as_they_were(lm, tmp_path, carry, layout):
    before, reads = fingerprint(lm), source()
    objectives = (AnswerCrossEntropy(), Distill(), Contrast())
    settings = WireTraining(
        wire=config(lm, carry=carry, layout=layout),
        data=DATA,
        objectives=objectives,
        steps=3,
        passages=3,
        questions=2,
        contexts=6,
        eval_samples=2,
        eval_steps=3,
        samples=1,
        warmup_steps=1,
    )
    done = train_wire({lm.name: lm}, reads, settings, tmp_path, log=lambda told: None)
    assert done.steps == 3
    assert fingerprint(lm) == before
    saved = LatentConfig.model_validate_json((tmp_path / "checkpoints" / "best" / "wire.json").read_text())
    assert (saved.carry, saved.layout) == (carry, layout)


def test_latents_are_moved_to_where_their_reader_is(lm, monkeypatch):
    modules, moved = modules_of(config(lm), lm), []
    monkeypatch.setattr(Latents, "to", lambda self, device: moved.append(device) or self)
    modules.deliver(modules(["Ada."]), lm.name)
    assert moved == [lm.device]
    monkeypatch.undo()
    message = modules(["Ada."])
    there = message.to(torch.device("meta"))
    assert {each.device.type for each in (*there.tensors, there.valid, there.positions, there.length)} == {"meta"}


def test_training_and_evaluation_divide_a_prompt_with_the_same_function(lm):
    """The words of a prompt as an evaluation and a training take them."""
    pair = [(EXAMPLES[0].context, EXAMPLES[0].question)]
    for carry, layout in LAYOUTS:
        built = config(lm, carry=carry, layout=layout)
        texts, asked = asking(built, pair, lm)
        (trained,) = Asking.of(lm, built).contexts([EXAMPLES[:1]])
        text, pairs, after = trained.text, trained.pairs, trained.after_latents
        assert asked == ([question for question, _ in pairs] if after is None else after)
        assert texts in (None, [text])
        assert (texts is None) is (layout != "text")
