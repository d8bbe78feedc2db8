"""A training that also generates keeps the best checkpoint by any metric, and shows the text's beside it."""

import json

import pytest

from latentwire.training.finetuning.finetuning_config import Finetuning
from tests.training.test_loop import SMALL, run, weights_of


def test_generated_answers_are_measured_at_their_cadence_beside_the_text(tmp_path):
    done, _ = run(
        tmp_path / "run", steps=4, eval_steps=1, generate_steps=2, generate_samples=3, best=["f1", "loss"]
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    generated = {line["step"]: line for line in lines if "eval_f1" in line}
    assert list(generated) == [0, 2, 4]
    for line in generated.values():
        assert 0 <= line["eval_exact_match"] <= line["eval_f1"] <= 1
        assert line["text_f1"] == done.text["f1"]
    assert done.bests["f1"]["value"] == max(line["eval_f1"] for line in generated.values())
    assert done.best_step == done.bests["f1"]["step"]
    for name in ("best", "best_loss", "final"):
        assert weights_of(tmp_path / "run", name)


def test_best_by_a_generated_metric_needs_a_cadence():
    with pytest.raises(ValueError, match="generate_steps"):
        Finetuning(**{**SMALL, "best": "f1"})
    with pytest.raises(ValueError, match="each metric once"):
        Finetuning(**{**SMALL, "best": ["loss", "loss"]})
    assert Finetuning(**{**SMALL, "best": "first_token"}).best == ("first_token",)
