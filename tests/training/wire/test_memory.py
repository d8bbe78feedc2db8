"""Where memory runs out the teacher reads less at a time, and a step that goes without it is counted."""

import json

import pytest
import torch

from latentwire.lm.scoring.questions import Questions
from latentwire.training.objectives import AnswerCrossEntropy, Distill, DistillHidden
from tests.support.wire_training import one_step, run


def out_of_memory_above(monkeypatch, rows):
    """A teacher's pass (it alone makes no gradients while training) holds at most so many rows."""
    honest, sizes = Questions.forced, []

    def forced(self, shared, lm):
        if not torch.is_grad_enabled() and shared.memory is None and lm.model.training is False:
            sizes.append(len(self.ids))
            if len(self.ids) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return honest(self, shared, lm)

    monkeypatch.setattr(Questions, "forced", forced)
    return sizes


def test_a_teacher_out_of_memory_halves_its_chunk_continues_and_reports_it(tmp_path, monkeypatch):
    objectives = (Distill(), DistillHidden(weight=0.1))
    run(tmp_path / "whole", objectives=objectives)
    with monkeypatch.context() as patch:
        sizes = out_of_memory_above(patch, 1)
        found, _, said = run(tmp_path / "halved", objectives=objectives)
    assert [line for line in said if "out of memory" in line] == [
        "out of memory: llama reads 2 instead of 4 texts as teacher",
        "out of memory: llama reads 1 instead of 2 texts as teacher",
    ]
    assert sizes == [4, 2] + [1] * 4 * found.steps, "what was found out once is kept"
    assert found.skipped == {}
    losses = [[line["loss"] for line in logged(tmp_path / name)] for name in ("whole", "halved")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_distillation_that_cannot_run_is_counted_and_reported(tmp_path, monkeypatch):
    out_of_memory_above(monkeypatch, 0)
    found, _, said = run(tmp_path / "run", objectives=(AnswerCrossEntropy(), Distill()))
    assert found.skipped == {"distill": found.steps} == {"distill": 6}
    lines = logged(tmp_path / "run")
    assert lines[-1]["adapting"]["skipped"] == {"distill": 6}
    assert [line["objectives"]["distill"] for line in lines] == [0.0] * 6
    assert sum("goes without" in line for line in said) == 6
    alone, _, _ = run(tmp_path / "alone", objectives=(Distill(),), steps=2)
    assert alone.skipped == {"distill": 2}, "nothing is left to learn from, and training goes on"


def test_a_pass_in_chunks_is_the_pass():
    _, step, part = one_step(objectives=(DistillHidden(),))
    one = step.evidence(part)[0]
    whole, states = one._teacher.read(one.questions, one.text, (0, 2))
    one._teacher.rows = 2
    chunked, again = one._teacher.read(one.questions, one.text, (0, 2))
    torch.testing.assert_close(chunked.hidden, whole.hidden)
    assert torch.equal(chunked.labels, whole.labels)
    assert set(states) == set(again) == {0, 2}
    torch.testing.assert_close(again, states)


def logged(folder):
    lines = map(json.loads, (folder / "diagnostics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]
