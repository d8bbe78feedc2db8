"""Arms of one wire share what it has encoded, and answer as they do alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from latentwire import LM
from latentwire.evaluation.arms import bind_all, parse
from latentwire.evaluation.evaluate import evaluate
from latentwire.lm.prompts import Example
from latentwire.tasks.base import Task
from latentwire.wires.latent import encodings
from latentwire.wires.latent.encodings import Encodings
from latentwire.wires.latent.message import Latents
from tests.support.models import tiny_lm

NAMES = ("Ada", "Bob", "Cem", "Dora", "Eve", "Finn")
PLACES = ("the old town", "a red house", "the river", "a shop", "the gate", "the hill")


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm(max_position_embeddings=256)


@pytest.fixture(scope="module")
def task() -> Task:
    """Two questions on each passage."""
    rows = []
    for n, (name, place) in enumerate(zip(NAMES, PLACES, strict=True)):
        context = f"{name} lives in {place}. {name} is {30 + n} years old{', they say' * (n % 3)}."
        asked = ((f"Where does {name} live?", place), (f"How old is {name}?", str(30 + n)))
        rows += [
            Example(id=f"{n}{at}", group=str(n), context=context, question=question, answers=(answer,))
            for at, (question, answer) in enumerate(asked)
        ]
    return Task(name="people", answer="span", source=lambda split: rows, max_new_tokens=4, stop=("\n",))


ARMS = [
    "nth,ratio=3",
    "nth,ratio=3:deranged",
    "nth,ratio=3:mean",
    "nth,ratio=3:counterfactual",
    "nth,ratio=3:4bit",
]


def test_each_context_is_encoded_once_for_all_arms_and_questions(lm, task, monkeypatch):
    from latentwire.wires.scored import ScoredWire

    read: list[str] = []
    honest = ScoredWire.latents

    def latents(self: ScoredWire, contexts: Sequence[str]) -> Latents:
        read.extend(contexts)
        return honest(self, contexts)

    monkeypatch.setattr(ScoredWire, "latents", latents)
    evaluate(lm, [task], [parse(arm) for arm in ARMS])
    # The longest prompt of each arm is read once more before anything is answered, by the same wire.
    assert len(read) == len(set(read))
    changed = [text for text in read if text not in {example.context for example in task.examples()}]
    assert len(read) - len(changed) == len(NAMES)
    assert 0 < len(changed) <= len(task.examples())


@pytest.mark.parametrize("arm", ["nth,ratio=3:deranged", "nth,ratio=3:mean", "evict,ratio=3,budget=head"])
def test_an_arm_answers_among_others_as_it_does_alone(lm, task, arm):
    def outcomes(arms: Sequence[str], batch_tokens: int) -> list[tuple[str, str, float]]:
        found = evaluate(lm, [task], [parse(each) for each in arms], batch_tokens=batch_tokens).outcomes
        return [(o.id, o.prediction, o.metrics["nll"]) for o in found if o.arm == arm]

    alone, among = outcomes([arm], 10_000), outcomes(list(dict.fromkeys([*ARMS, arm])), 120)
    assert [each[:2] for each in among] == [each[:2] for each in alone]
    assert [each[2] for each in among] == pytest.approx([each[2] for each in alone], abs=1e-4)


def test_what_does_not_fit_is_encoded_again_with_the_same_result(lm, monkeypatch):
    monkeypatch.setattr(encodings, "LIMIT", 6_000)
    wire = bind_all([parse("nth,ratio=3")], lm)[0].wire
    contexts = [f"{name} lives in {place}." for name, place in zip(NAMES, PLACES, strict=True)]
    kept, calls = Encodings(), []

    def encode(some: Sequence[str]) -> Latents:
        calls.append(len(some))
        return wire.latents(some)

    whole = wire.latents(contexts)
    for rows in (contexts, contexts[::-1], [*contexts, contexts[0]]):
        found = kept.of(rows, encode)
        expected = whole.select(torch.tensor([contexts.index(each) for each in rows]))
        assert found.nbytes() == expected.nbytes()
        columns = expected.valid.sum(1)
        for row, count in enumerate(columns.tolist()):
            for one, two in zip(found.tensors, expected.tensors, strict=True):
                assert torch.allclose(one[row][..., :count, :], two[row][..., :count, :], atol=1e-5)
            assert torch.equal(found.positions[row][:count], expected.positions[row][:count])
    assert calls[0] == len(contexts)
    assert all(0 < call < len(contexts) for call in calls[1:])
