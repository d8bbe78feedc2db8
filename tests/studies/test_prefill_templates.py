"""Claims about the templates of one model that is finetuned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from tests.support.studies import model_folder


def test_one_template_changes_its_model_in_one_line() -> None:
    study = loading.load("quickstart", [f"model={model_folder()}"])
    assert study.model == str(model_folder())
    names = ["baseline", "ablated", "causal_ft", "prefix_ft", "ablated_after_causal_ft", "ablated_after_prefix_ft"]
    assert list(study.stages) == [*names, "plain_after_causal_ft", "plain_after_prefix_ft"]
    assert study.limit is not None
    assert study.limit >= 500
    causal, prefix = study.stages["causal_ft"], study.stages["prefix_ft"]
    assert causal.model_copy(update={"wire": ""}) == prefix.model_copy(update={"wire": ""})


@pytest.mark.slow
def test_the_prefill_mask_template_runs_from_start_to_end(tmp_path: Path) -> None:
    """A tiny random Ministral3, local files for the five tasks and for the training data."""
    tasks = []
    for name in ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"):
        lines = [
            {
                "context": f"{name} {at}: a heron stood.",
                "question": "Where?",
                "choices": ["here", "there"],
                "gold": at % 2,
            }
            for at in range(6)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        tasks.append({"name": name, "kind": "jsonl", "data": str(tmp_path / f"{name}.jsonl")})
    alpaca = [{"instruction": f"Say {at}.", "input": "", "output": f"{at} and {at + 1}."} for at in range(40)]
    (tmp_path / "alpaca.jsonl").write_text("".join(json.dumps(line) + "\n" for line in alpaca))
    changes = {
        "model": str(model_folder("ministral3")),
        "tasks": tasks,
        "limit": 6,
        "finetuning.data": {"kind": "file", "path": str(tmp_path / "alpaca.jsonl")},
        "finetuning.train_samples": 30,
        "finetuning.eval_samples": 5,
        "finetuning.steps": 4,
        "finetuning.eval_steps": 2,
        "finetuning.rows": 2,
        "finetuning.row_tokens": 128,
        "finetuning.accumulation": 1,
        "finetuning.warmup_steps": 1,
        "finetuning.stopping.no_signal_steps": None,
        "stages.long_ft.steps": 12,
        "stages.long_ft.stopping": {"patience": 1, "min_delta": 10.0, "min_steps": 4},
    }
    words = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix('...' + chr(10))}"
        for key, value in changes.items()
    ]
    carried = runner.run(loading.load("prefill-mask", words), tmp_path / "runs", Log())
    assert {run.status for run in carried.runs.values()} == {"done"}
    results = {name: run.record.results or {} for name, run in carried.runs.items()}
    assert results["causal_ft"]["train_rows_sha256"] == results["prefix_ft"]["train_rows_sha256"]
    assert results["long_ft"]["stopped"].startswith("plateau")
    assert results["long_ft"]["steps"] < 12
    assert len(carried.summary["derived"]["gates"]) == 3
    assert "causal_ft, prefix_ft saw the same rows" in (carried.folder / "summary.md").read_text()
