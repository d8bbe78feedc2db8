"""Several readers of the same wire: an oracle over them, and one answer by all of them."""

from dataclasses import replace

import pytest
import torch

from latentwire.evaluation import arms
from latentwire.evaluation.costs import measure
from latentwire.evaluation.joint import joint, union
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.several_readers import evaluate_readers
from latentwire.evaluation.statistics import shared
from latentwire.tasks.base import Task
from tests.evaluation.test_evaluate import CHOICE, SPAN
from tests.support.models import tiny_lm

TASKS = [
    Task(name="span", answer="span", source=lambda split: iter(SPAN), max_new_tokens=4),
    Task(name="choices/one", answer="choice", source=lambda split: iter(CHOICE)),
]


@pytest.fixture(scope="module")
def readers():
    one, two = (tiny_lm(family, max_position_embeddings=512) for family in ("llama", "qwen3"))
    return {None: one, "qwen3": two}


def outcome(arm, at, right):
    return Outcome(
        task="t", arm=arm, id=str(at), group="g", prediction=arm, metrics={"exact_match": right, "nll": 1.0}
    )


def test_the_oracle_is_right_where_anyone_is():
    a = [outcome("a", at, right) for at, right in enumerate([1.0, 0.0, 0.0])]
    b = [outcome("b", at, right) for at, right in enumerate([1.0, 1.0, 0.0])]
    found = union([a, b])
    assert [o.metrics["exact_match"] for o in found] == [1.0, 1.0, 0.0]
    assert [o.prediction for o in found] == ["a", "b", "a"]
    assert {o.arm for o in found} == {"union(a + b)"}
    with pytest.raises(ValueError, match="same examples"):
        union([a, b[1:]])


def test_arms_without_an_example_in_common_have_no_oracle():
    a, b = [outcome("a", 0, 1.0)], [outcome("b", 1, 1.0)]
    assert union(shared([a, b])) == []
    assert union(shared([[], b])) == []


def test_an_example_that_one_readers_arm_leaves_out_has_no_joint_answer(readers, monkeypatch):
    honest = arms.Arm.prepared

    def prepared(self, lm, task, items):
        bound, kept = honest(self, lm, task, items)
        return bound, kept if lm is readers[None] else kept[1:]

    monkeypatch.setattr(arms.Arm, "prepared", prepared)
    found = evaluate_readers(readers, TASKS, [arms.parse(t) for t in ("text", "text@qwen3")])
    for task, examples in (("span", SPAN), ("choices/one", CHOICE)):
        for name in ("union(text + text@qwen3)", "joint(text + text@qwen3)"):
            ids = [o.id for o in found.outcomes if (o.arm, o.task) == (name, task)]
            assert ids == [example.id for example in examples][1:]


def test_two_readers_of_a_wire_bring_an_oracle_and_a_joint_answer(readers):
    found = evaluate_readers(readers, TASKS, [arms.parse(t) for t in ("text", "text@qwen3", "none")])
    names = {o.arm for o in found.outcomes}
    assert names == {"text", "text@qwen3", "none", "union(text + text@qwen3)", "joint(text + text@qwen3)"}
    for task, count in (("span", len(SPAN)), ("choices/one", len(CHOICE))):
        for name in names:
            assert len([o for o in found.outcomes if (o.arm, o.task) == (name, task)]) == count


def test_a_joint_choice_has_the_largest_sum_of_log_probabilities(readers):
    pair = [(readers[None], arms.parse("text")), (readers["qwen3"], arms.parse("nth,ratio=2@qwen3"))]
    for example, got in zip(CHOICE, joint(pair, TASKS[1], [[], []]), strict=True):
        sums = torch.zeros(len(example.choices))
        for lm, arm in pair:
            prompt, answers = lm.format.encode(example, lm)
            prefix = arm.wire.bind(lm)([prompt], lm)
            sums += torch.tensor([score.logprob for score in lm.score(lm.prefill(prefix), [answers])[0]])
        assert got.prediction == example.choices[int(sums.argmax())]


def test_one_reader_twice_decides_as_it_would_alone(readers):
    pair = [(readers[None], arms.parse("text"))] * 2
    alone = evaluate_readers(readers, TASKS[1:], [arms.parse("text")]).outcomes
    assert [o.prediction for o in joint(pair, TASKS[1], [[], []])] == [o.prediction for o in alone]


def test_costs_count_the_message_and_the_text_it_replaces(readers):
    found = measure(readers[None], TASKS[0], arms.parse("nth,ratio=3"), repeats=3)
    one = 2 * 3 * 2 * 8  # keys and values, layers, heads, width
    assert found.text_kv_bytes == pytest.approx(2 * one * found.context_tokens)
    assert found.latent_bytes[16] == pytest.approx(2 * one * found.latents)
    assert found.latent_bytes[4] == pytest.approx(found.latent_bytes[16] * (4 + 2) / 16, abs=1)
    assert found.latents < found.context_tokens / 2
    assert min(found.encode_ms, found.text_ms, found.cold_ms, found.warm_ms) > 0


def test_encoding_pays_once_the_questions_have_saved_its_time(readers):
    found = measure(readers[None], TASKS[0], arms.parse("nth,ratio=3"), repeats=1)
    assert replace(found, encode_ms=10.0, text_ms=5.0, warm_ms=1.0).pays_after == 3
    assert replace(found, encode_ms=10.0, text_ms=5.0, warm_ms=5.0).pays_after is None
