"""Trainings as curves: losses, objectives, gradient norms and accuracies by step, with stops and bests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latentwire.report.gathered import Gathered
from latentwire.studies.training_curves import FILE, lines_of_training

POINTS = 400
"""How many points of a curve are kept; of a longer one every n-th, and the last."""
PANELS = {
    "loss": "Loss, nats a token",
    "objectives": "Objectives",
    "gradient": "Gradient norm",
    "accuracy": "Accuracy on held-out examples",
}
_CURVES = {
    "loss": ("loss", "training"),
    "eval_loss": ("loss", "evaluation"),
    "gradient_norm": ("gradient", "all"),
    "first_token_accuracy": ("accuracy", "first token, training"),
    "eval_first_token_accuracy": ("accuracy", "first token"),
    "eval_exact_match": ("accuracy", "exact match"),
    "eval_f1": ("accuracy", "F1"),
}
_NESTED = {"objectives": "objectives", "objective_gradient_norms": "gradient"}


def histories(study: Gathered) -> list[dict[str, Any]]:
    """Each training: `stage`, `steps`, `stopped`, `best` and `curves`, each with `panel`, `name` and `points`."""
    found = []
    for stage, run in study.runs.items():
        path = run.folder / FILE
        if not path.is_file():
            continue
        results = run.record.results or {}
        found.append(
            {
                "stage": stage,
                "steps": results.get("steps"),
                "stopped": results.get("stopped") or ("not done" if not results else ""),
                "best": _bests(results),
                "peak": {"step": results.get("peak_step"), "value": results.get("peak_accuracy")},
                "final": results.get("final_accuracy"),
                "curves": list(_curves(lines_of_training(path))),
            }
        )
    return found


def _bests(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    bests = results.get("bests") or {}
    if not bests and "best_step" in results:
        bests = {"loss": {"value": results["best_loss"], "step": results["best_step"]}}
    return [{"metric": metric, **best} for metric, best in bests.items() if math.isfinite(best["value"])]


def _curves(lines: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for key, (panel, name) in _CURVES.items():
        yield from _curve(panel, name, [(line["step"], line.get(key)) for line in lines])
    for key, panel in _NESTED.items():
        names = dict.fromkeys(name for line in lines for name in line.get(key) or {})
        if len(names) == 1:
            continue  # the same curve as that of all of them
        for name in names:
            yield from _curve(panel, name, [(line["step"], (line.get(key) or {}).get(name)) for line in lines])


def _curve(panel: str, name: str, points: Sequence[tuple[int, Any]]) -> Iterator[dict[str, Any]]:
    kept = [(step, float(value)) for step, value in points if value is not None and math.isfinite(value)]
    if kept:
        every = -(-len(kept) // POINTS)
        shown = kept[::every] if kept[-1] in kept[::every] else [*kept[::every], kept[-1]]
        yield {"panel": panel, "name": name, "points": [[step, float(f"{value:.4g}")] for step, value in shown]}
