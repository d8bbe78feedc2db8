"""Any wire that sends latents, a bridge among them, is a model of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import lm_eval
from lm_eval.tasks import TaskManager

from latentwire.harness import register

register()
WIRES = {
    "nth": {"model": "embedded:heron", "wire": "nth,ratio=4"},
    "evict": {"model": "embedded:heron", "wire": "evict,ratio=4"},
    "wire": {"model": "embedded:heron", "wire": "embedded:heron-4x"},
    "bridge": {"model": "embedded:wren", "wire": "embedded:heron-to-wren"},
}


def answers(folder: Path, arguments: dict[str, Any]) -> dict[str, list[Any]]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model="latentwire",
        model_args=arguments,
        tasks=["lw_choose", "lw_write"],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = {task: sorted(rows, key=lambda row: row["doc_id"]) for task, rows in results["samples"].items()}
    return {task: [row["resps"] for row in rows] for task, rows in samples.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIRES)
def test_latents_in_place_of_text_answer_choices_and_write(folder: Path, name: str) -> None:
    over_latents = answers(folder, WIRES[name])
    over_text = answers(folder, {"model": WIRES[name]["model"]})
    for task, count in (("lw_choose", 4), ("lw_write", len(over_text["lw_write"]))):
        assert len(over_latents[task]) == len(over_text[task]) == count
    assert over_latents["lw_choose"] != over_text["lw_choose"]
