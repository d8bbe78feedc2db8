"""Arms name what they do, and what they do to examples is what they say."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from latentwire import models, wires
from latentwire.errors import UserError
from latentwire.evaluation import arms, score_tables
from latentwire.evaluation.answers import _outcome
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.matching import mentions
from latentwire.evaluation.variants import counterfactual, deranged, partners, right_answers
from latentwire.lm.prompts import Example
from latentwire.tasks import resolve
from latentwire.tasks.base import Task
from latentwire.wires.latent.latent_wire import Latent
from tests.support.models import tiny_lm

DATA = Path(os.environ.get("LATENTWIRE_DATA", Path(__file__).parents[3] / "shared" / "data"))
ONE_HOP = resolve(["one_hop"], None)[0].examples("test", 120)


def span_task(examples):
    return Task(name="span", answer="span", source=lambda split: iter(examples), max_new_tokens=4)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm(max_position_embeddings=2048)


@pytest.mark.parametrize(
    "text",
    [
        "text",
        "text:deranged",
        "nth,ratio=4:zero",
        "nth,ratio=4:4bit:deranged",
        "none@embedded:wren",
        "evict,tokens=9:counterfactual@embedded:wren",
    ],
)
def test_a_label_is_what_the_command_line_takes(text):
    assert arms.parse(text).label == text
    assert arms.parse(arms.parse(text).label) == arms.parse(text)


@pytest.mark.parametrize("folder", ["plain", "a@b", "a:b", "x:zero", "lr=3@home, 12:30/w", "text@t", "./embedded"])
def test_a_wires_folder_is_found_whatever_its_name_holds_and_in_every_order(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models.wire_folder("heron-4x"), tmp_path / folder)
    (tmp_path / "r@1:2").mkdir()
    assert arms.parse(folder) == arms.Arm(Latent(path=folder))
    for reader in ("embedded:wren", "r@1:2", "org/model"):
        for text in (f":4bit:deranged@{reader}", f"@{reader}:deranged:4bit", f":deranged@{reader}:4bit"):
            arm = arms.parse(folder + text)
            assert arm == arms.Arm(Latent(path=folder, control="4bit"), "deranged", reader)
            assert arms.parse(arm.label) == arm


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("text:derangd", "nearest: deranged"),
        ("nth,ratio=4:4bits", "nearest: 4bit"),
        ("text:zero", "sends no latents"),
        ("txt:deranged", "nearest: text"),
        ("text@", "after '@'"),
        ("text@:deranged", "after '@'"),
        ("text@a@b", "expected one reader, or an existing folder"),
        ("text@embedded:wren:derangd", "found 'derangd' after embedded:wren"),
        ("text:deranged@embedded:wren:counterfactual", "expected one variant"),
        ("nth,ratio=4:zero:4bit", "one control at most"),
        ("embedded:heron-4y", "embedded:heron-4y"),
    ],
)
def test_a_wrong_arm_is_refused_in_one_sentence(text, part):
    with pytest.raises(UserError) as error:
        arms.parse(text)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_deranged_has_the_context_of_another_group_without_the_answer():
    found = deranged(ONE_HOP, "one_hop")
    by_context = {example.context: example for example in ONE_HOP}
    kinds = []
    for old, new in zip(ONE_HOP, found, strict=True):
        assert replace(new, context=old.context) == old
        partner = by_context[new.context]
        assert partner.group != old.group
        assert not mentions(new.context, old.answers[0])
        kinds.append(partner.question.split()[:2] == old.question.split()[:2])
    assert all(kinds)


def test_partners_depend_on_the_set_of_examples_alone():
    forwards = {old.id: new.context for old, new in zip(ONE_HOP, deranged(ONE_HOP, "t"), strict=True)}
    turned = ONE_HOP[::-1]
    assert forwards == {old.id: new.context for old, new in zip(turned, deranged(turned, "t"), strict=True)}


def test_deranged_without_a_partner_says_so():
    with pytest.raises(UserError, match=r"found no context of another group .* among 1 examples"):
        deranged(ONE_HOP[:1], "one_hop")
    same = [replace(example, group="one") for example in ONE_HOP[:9]]
    with pytest.raises(UserError, match="another group"):
        deranged(same, "one_hop")


def test_counterfactual_states_the_foil_wherever_the_gold_answer_stood():
    for old, new in zip(ONE_HOP, counterfactual(ONE_HOP, "one_hop"), strict=True):
        assert new is not None
        (gold,), (foil,) = old.answers, new.answers
        assert not mentions(new.context, gold)
        assert not mentions(old.context, foil)
        assert new.context.replace(foil, gold) == old.context
        assert new.candidates[old.candidates.index(gold)] == foil
        assert (new.id, new.group, new.question) == (old.id, old.group, old.question)


def test_a_counterfactual_choice_may_still_be_the_old_one():
    examples = resolve(["choices/home"], None)[0].examples("test", 40)
    for old, new in zip(examples, counterfactual(examples, "choices"), strict=True):
        assert new is not None
        assert new.choices[:-1] == old.choices
        assert right_answers(new)[0] in new.context
        assert right_answers(old)[0] not in new.context


def test_what_cannot_be_exchanged_is_left_out_and_counted(lm):
    unstated = replace(ONE_HOP[0], id="unstated", answers=("nowhere",))
    examples = [*ONE_HOP[:20], unstated]
    changed = [new.id for new in counterfactual(examples, "span") if new]
    assert 15 < len(changed) < 21
    assert "unstated" not in changed
    result = evaluate(lm, [span_task(examples)], [arms.parse("text:counterfactual")])
    assert result.skipped == {("text:counterfactual", "span"): 21 - len(changed)}
    assert [o.id for o in result.outcomes] == changed
    with pytest.raises(UserError, match="found no such example"):
        counterfactual([unstated], "span")


def test_a_reader_that_copies_follows_a_counterfactual_and_does_not_stick(lm, monkeypatch):
    """Answers put into the reader's mouth: that of the changed passage, and the old one."""
    task = span_task(ONE_HOP[:20])
    changed = {new.id: new.answers[0] for new in counterfactual(ONE_HOP[:20], "span") if new}
    for follows in (True, False):
        said = changed if follows else {old.id: old.answers[0] for old in ONE_HOP}
        monkeypatch.setattr("latentwire.evaluation.answers._outcome", _saying(said), raising=True)
        outcomes = evaluate(lm, [task], [arms.parse("text:counterfactual")]).outcomes
        assert [o.metrics["exact_match"] for o in outcomes] == [float(follows)] * len(changed)
        assert [o.metrics["sticks"] for o in outcomes] == [float(not follows)] * len(changed)


def _saying(said):
    def outcome(task, arm, item, text, *rest):
        return _outcome(task, arm, item, said[item.example.id], *rest)

    return outcome


def test_mean_meets_other_groups_only_and_needs_two(lm):
    task = span_task(ONE_HOP[:4])
    assert len(evaluate(lm, [task], [arms.parse("nth,ratio=4:mean")]).outcomes) == 4
    with pytest.raises(UserError, match="found 1, expected"):
        evaluate(lm, [span_task(ONE_HOP[:1])], [arms.parse("nth,ratio=4:mean")])


def test_the_first_token_is_right_where_greedy_decoding_begins_with_it(lm):
    text = "text"
    said = evaluate(lm, [span_task(ONE_HOP[:6])], [wires.parse(text)]).outcomes
    own = [replace(e, answers=(o.prediction or "x",)) for e, o in zip(ONE_HOP, said, strict=False)]
    for example, outcome in zip(own, evaluate(lm, [span_task(own)], [wires.parse(text)]).outcomes, strict=True):
        one, five = outcome.metrics["first_token_top1"], outcome.metrics["first_token_top5"]
        assert five >= one
        prompt, (answer,) = lm.format.encode(example, lm)
        logits = lm.prefill(wires.parse(text)([prompt], lm)).logits[0]
        assert one == float(int(logits.argmax()) == answer[0])
        assert five == float(answer[0] in logits.topk(5).indices.tolist())


def test_an_example_without_a_context_is_not_deranged():
    bare = Example(id="a", group="a", context="", question="Who?", answers=("Ada",))
    first, *others = deranged([bare, *ONE_HOP[:20]], "span")
    assert first is None
    assert all(others)
    with pytest.raises(UserError, match="without one of their own"):
        deranged([bare, replace(bare, id="b", group="b")], "span")


def passages(*rows):
    """Examples, each of a group of its own, from (context, question, answer)."""
    return [
        Example(id=str(at), group=str(at), context=context, question=question, answers=(answer,))
        for at, (context, question, answer) in enumerate(rows)
    ]


MIXED = passages(
    ("Ada lives in Rome.", "Where does Ada live?", "Rome"),
    ("Bo lives in Oslo.", "Where does Bo live?", "Oslo"),
    ("Cy paid 5 dollars.", "How much did Cy pay?", "5"),
    ("Of Rome and Oslo, Di was born in Oslo; she owns 5 cats.", "In which city was Di born?", "in"),
)


def test_a_question_that_nobody_else_asks_gets_any_other_context_without_its_answer():
    ada, bo, cy, di = partners(MIXED, "span")
    assert (ada.example, ada.same_type) == (MIXED[1], True)
    assert (bo.example, bo.same_type) == (MIXED[0], True)
    assert cy.example in MIXED[:2]
    assert not cy.same_type
    assert di.example == MIXED[2]


def test_an_example_that_no_other_context_fits_is_left_out_counted_and_compared_without(lm):
    held = replace(MIXED[0], id="held", group="held", question="Who lives somewhere?", answers=("lives",))
    task = span_task([*MIXED[:2], held])
    result = evaluate(lm, [task], [arms.parse("text"), arms.parse("text:deranged")])
    assert result.skipped == {("text:deranged", "span"): 1}
    assert result.partners == {("text:deranged", "span"): {"same type": 2, "any type": 0, "none": 1}}
    assert [o.id for o in result.outcomes] == ["0", "1", "held", "0", "1"]
    numbers = [str(cell) for cell in score_tables.scores(result).columns[4]._cells]
    assert numbers[:2] == ["3", "2"]


@pytest.mark.parametrize(
    ("longer", "answer", "elsewhere"),
    [
        ("王芳也住在北京郊外。", "北京", "上海浦东很大。"),
        ("東\n京タワーの近くです。", "東京", "大阪です。"),
        ("เขาอาศัยอยู่ในกรุงเทพมหานคร", "กรุงเทพ", "เชียงใหม่"),
        ("그는 서울에서 산다.", "서울", "부산"),
        ("يعيش في بالقاهرة الآن", "القاهرة", "دمشق"),
        ("新しいiPhoneを買った。", "iPhone", "新しい車"),
        ("The Paris-based firm", "Paris", "The Parisian firm"),
        ("the U.S. today", "US", "they use it"),
        ("It is １９９０.", "1990", "It is 19901."),
    ],
)
def test_deranged_hands_over_no_context_that_holds_the_answer_in_any_script(longer, answer, elsewhere):
    assert mentions(longer, answer)
    assert not mentions(elsewhere, answer)
    asked, other, held = passages((answer, "?", answer), (elsewhere, "?", elsewhere), (longer, "?", longer))
    assert partners([asked, other, held], "span")[0].example == other


def test_a_counterfactual_exchanges_an_answer_inside_text_without_blanks():
    rows = passages(("李明住在北京市区。", "住在哪里", "北京"), ("陈伟住在上海浦东。", "住在哪里", "上海"))
    assert [new.context for new in counterfactual(rows, "span")] == ["李明住在上海市区。", "陈伟住在北京浦东。"]


@pytest.mark.skipif(not (DATA / "xquad_en.json").exists(), reason="real data is not part of the repository")
def test_every_question_of_xquad_is_deranged():
    examples = resolve(["squad"], DATA / "xquad_en.json")[0].examples()
    found = partners(examples, "squad")
    assert sum(partner.same_type for partner in found) == 1074
    assert len(found) == 1190
    for example, partner in zip(examples, found, strict=True):
        assert partner.example.group != example.group
        assert not any(mentions(partner.example.context, answer) for answer in example.answers)


def test_controls_say_of_every_trained_wire_what_goes_over_it():
    wire = "embedded:heron-4x"
    found = arms.parse_all([wire, "nth,ratio=4"], "embedded:heron", controls=True)
    assert [arm.label for arm in found] == [
        "text",
        "none",
        wire,
        f"{wire}:deranged",
        f"{wire}:mean",
        f"{wire}:counterfactual",
        "nth,ratio=4",
    ]
    given = [arm.label for arm in found]
    assert [arm.label for arm in arms.parse_all(given, "embedded:heron")] == given
    assert arms.parse_all(["budget,ratio=4"], "m", controls=True) == arms.parse_all(["budget,ratio=4"], "m")
    other = arms.parse_all([f"{wire}@embedded:wren"], "embedded:heron", controls=True)
    assert [arm.label for arm in other[:2]] == ["text@embedded:wren", "none@embedded:wren"]


def test_the_model_by_its_name_is_the_model():
    """So its arms are compared with `text` and `none`, which name nobody."""
    found = arms.parse_all(["text", "nth,ratio=4@embedded:heron", "nth,ratio=4"], "embedded:heron")
    assert [arm.label for arm in found] == ["text", "nth,ratio=4"]
