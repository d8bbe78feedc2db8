"""An evaluation that runs out of memory reads its batches in halves and ends in the same outcomes.

Scores in nats are equal to rounding: on some processors the last bit of a sum depends on the rest of its batch.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire import wires
from latentwire.evaluation.arms import parse
from latentwire.evaluation.evaluate import Evaluation, evaluate
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.prompts_kept import KeptPrompts
from latentwire.evaluation.several_readers import evaluate_readers
from latentwire.lm.decoder import Decoder
from latentwire.lm.decoding import engine
from latentwire.lm.decoding.slots import Slots
from latentwire.lm.halving import Halving
from latentwire.lm.loading import reading_probe
from latentwire.lm.model import LM
from latentwire.lm.scoring import row_plan
from latentwire.process_group import ALONE, Group
from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.tasks.base import Task
from tests.evaluation.test_evaluate import CHOICE, TASKS
from tests.support.models import tiny_lm
from tests.support.processes import together
from tests.support.studies import small_study, written

WIRES = [wires.parse(spec) for spec in ("text", "text,mask=prefix", "none", "budget,tokens=3", "leaky")]


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm(max_position_embeddings=512)


def answered(lm: LM, log: Callable[[str], None], **options: Any) -> tuple[Evaluation, Counter[tuple[str, str]]]:
    """An evaluation, and how many answers were reported by arm and task."""
    told: Counter[tuple[str, str]] = Counter()

    def progress(arm: str, task: str, count: int) -> None:
        told[arm, task] += count

    return evaluate(lm, TASKS, WIRES, progress=progress, halving=Halving(log), **options), told


def small(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let a forward pass of more than `most` rows run out of memory; the rows of those that did not."""
    run, passed = Decoder.run, []

    def limited(self: Decoder, content: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        if len(content) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        passed.append(len(content))
        return run(self, content, *args, **named)

    monkeypatch.setattr(Decoder, "run", limited)
    return passed


def same(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> None:
    assert [(o.task, o.arm, o.id) for o in ours] == [(o.task, o.arm, o.id) for o in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.prediction, one.error, one.tokens) == (other.prediction, other.error, other.tokens)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4, abs=1e-5)


# A leaky wire's choices are read in passes of their own, four for an example.
@pytest.mark.parametrize("most", [4, 5])
def test_batches_that_do_not_fit_are_read_in_halves_with_the_same_outcomes(
    lm: LM, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_plan, "ROW", 24)  # so that choices read together take several rows, too
    said: list[str] = []
    whole, told = answered(lm, said.append)
    assert not said
    passed = small(monkeypatch, most)
    parts, told_again = answered(lm, said.append)
    same(parts.outcomes, whole.outcomes)
    assert told == told_again, "nothing is answered twice, and nothing is left out"
    assert max(passed) <= most
    assert len(said) == 1, "one sentence, however often batches are halved"
    assert "out of memory" in said[0]
    assert "halves" in said[0]


def test_choices_read_together_are_halved_by_rows(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_plan, "ROW", 24)
    examples = [
        replace(CHOICE[n % 7], id=f"choice/{n}", context=f"{name} has {n} apples and a house.")
        for n, name in enumerate(("Ada", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon"))
    ]
    choices = [Task(name="choices", answer="choice", source=lambda split: iter(examples))]
    text = [wires.parse("text")]
    whole = evaluate(lm, choices, text)
    said: list[str] = []
    passed = small(monkeypatch, 1)
    # What is delivered as tokens runs no pass of its own: all passes are those of the scorer.
    parts = evaluate(lm, choices, text, halving=Halving(said.append))
    same(parts.outcomes, whole.outcomes)
    assert set(passed) == {1}
    assert len(said) == 1
    assert len(passed) > sum(work.passes for work in whole.work.values())
    assert [work.least for work in parts.work.values()] == [work.least for work in whole.work.values()]


def test_the_batches_after_it_are_smaller_from_the_start() -> None:
    tried: list[int] = []

    def run(part: Sequence[int]) -> int:
        tried.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return sum(part)

    said: list[str] = []
    halving = Halving(said.append)
    first = list(halving.read(range(8), run, len, str))
    assert [list(part) for part, _ in first] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert tried == [8, 4, 2, 2, 2, 2], "what did not fit is tried once"
    tried.clear()
    assert [done for _, done in halving.read(range(5), run, len, str)] == [1, 2, 7]
    assert tried == [2, 1, 2]
    assert len(said) == 1


def test_the_tensors_of_a_pass_that_failed_are_gone_before_the_next_one() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def run(part: Sequence[int]) -> int:
        assert not any(each() is not None for each in alive)
        held = torch.ones(3)
        alive.append(weakref.ref(held))
        if len(part) > 1:
            raise torch.OutOfMemoryError
        return 1

    gc.disable()  # references alone must be enough
    try:
        assert sum(done for _, done in Halving(lambda _: None).read(range(4), run, len, str)) == 4
    finally:
        gc.enable()


@pytest.mark.parametrize(("arm", "name"), [("none", "sums"), ("text", "choices/one")])
def test_a_single_example_that_does_not_fit_ends_in_its_sentence(
    lm: LM, arm: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [task for task in TASKS if task.name == name]
    small(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError, match=r"does not fit .* even alone: CUDA out of memory") as raised:
        evaluate(lm, chosen, [wires.parse(arm)], halving=Halving(lambda _: None))
    said = str(raised.value)
    assert said.startswith("sum/" if name == "sums" else "a row of "), "it names what did not fit"
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None, "it holds no tensors of the pass"


def test_generation_that_runs_out_of_memory_leaves_no_slots(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `Slots`, in the middle of a step, and with slots that would have been kept for the next batch."""
    spans = [task for task in TASKS if task.answer == "span"]
    whole = evaluate(lm, spans, WIRES[:1])
    made, step, freed = Slots.__init__, engine.Engine.steps, []

    def init(self: Slots, like: Any, rows: int, capacity: int) -> None:
        made(self, like, rows, capacity)
        if rows > 4:
            raise torch.OutOfMemoryError

    def steps(self: engine.Engine, count: int, longest: int) -> torch.Tensor:
        if self.slots.rows > 2:
            raise torch.OutOfMemoryError
        return step(self, count, longest)

    release = engine.Engine.release

    def released(self: engine.Engine) -> None:
        release(self)
        freed.append(self._slots is None)

    monkeypatch.setattr(Slots, "__init__", init)
    monkeypatch.setattr(engine.Engine, "steps", steps)
    monkeypatch.setattr(engine.Engine, "release", released)
    monkeypatch.setattr(engine.Engine, "close", lambda self: None)  # as where a graph was captured
    said: list[str] = []
    same(evaluate(lm, spans, WIRES[:1], halving=Halving(said.append)).outcomes, whole.outcomes)
    assert freed
    assert all(freed)
    assert len(said) == 1


def test_readers_of_one_wire_and_their_joint_answer_are_halved_too(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = {None: lm, "other": tiny_lm(seed=1, max_position_embeddings=512)}
    arms = [parse("text"), parse("text@other")]
    spans = [task for task in TASKS if task.answer == "span"]
    whole = evaluate_readers(readers, spans, arms)
    small(monkeypatch, 3)
    said: list[str] = []
    same(evaluate_readers(readers, spans, arms, halving=Halving(said.append)).outcomes, whole.outcomes)
    assert any(outcome.arm.startswith("joint") for outcome in whole.outcomes)
    assert len(said) == 1


def test_prompts_are_kept_once_however_often_they_are_read(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    def lines(task: Task) -> list[str]:
        kept = KeptPrompts()
        evaluate(lm, [task], WIRES[:3], kept=kept, halving=Halving(lambda _: None))
        return list(kept.lines(task.name, {wire.label: wire.label for wire in WIRES[:3]}))

    whole = [lines(task) for task in TASKS]
    small(monkeypatch, 2)
    assert [lines(task) for task in TASKS] == whole


def shared(group: Group) -> list[str]:
    """Only the second of several processes is short of memory."""
    lm = tiny_lm(max_position_embeddings=512)
    with pytest.MonkeyPatch.context() as patch:
        if group.index == 1:
            small(patch, 4)
        options = {"batch_tokens": 250, "group": group}
        return [outcome.to_json() for outcome in answered(lm, lambda _: None, **options)[0].outcomes]


def test_processes_that_halve_differently_get_the_outcomes_of_one() -> None:
    whole = [Outcome.from_json(line) for line in shared(ALONE)]
    for lines in together(2, shared):
        same([Outcome.from_json(line) for line in lines], whole)


def test_a_stage_says_so_once_for_all_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = small_study(
        stages={"read": {"kind": "evaluate", "arms": {"text": "text"}}},
        effects=None,
        comparisons=[],
        gates=[],
        limit=10,
    )
    study = loading.load(str(written(tmp_path, raw | {"tasks": ["one_hop", "reverse"]})))
    small(monkeypatch, 4)
    monkeypatch.setattr(
        reading_probe, "check", lambda lm: None
    )  # it reads several rows as soon as a model is loaded
    runner.run(study, tmp_path / "runs", Log())
    (log,) = (tmp_path / "runs").rglob("log.txt")
    assert log.read_text(encoding="utf-8").count("out of memory: a batch of ") == 1
    (outcomes,) = (tmp_path / "runs").rglob("outcomes.jsonl")
    assert Counter(outcome.task for outcome in read_outcomes(outcomes)) == {"one_hop": 10, "reverse": 10}
