"""Curves of trainings: evaluation loss and the share of right first tokens against the step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.studies import drawing
from latentwire.studies.shape import Summary

FILE = "diagnostics.jsonl"


def trainings(folder: Path, found: Summary) -> dict[str, Path]:
    """The diagnostics files of a study's trainings, by stage, as far as they exist in its folder."""
    # A run is written STUDY/STAGE/RUN; the study's folder may have been renamed since.
    runs = {name: Path(stage["run"]).parts[1:] for name, stage in found["stages"].items() if stage["run"]}
    files = {name: folder.joinpath(*parts) / FILE for name, parts in runs.items()}
    return {name: file for name, file in files.items() if file.is_file()}


def draw(files: Mapping[str, Path], out: Path, title: str = "trainings") -> None:
    """Draw trainings into one file with two panels.

    Args:
        files: A `diagnostics.jsonl` for each label.
        out: Where to draw, ending in .svg or .png.
        title: What stands below the panels.

    Raises:
        UserError: A file is not a training's, matplotlib is not installed, or nothing can be written.
    """
    drawing.check(out)
    lines = {label: lines_of_training(path) for label, path in files.items()}
    figure = drawing.figure(9, 3.6 + 0.16 * len(lines) / 4)
    losses, rights = figure.subplots(1, 2)
    for at, (label, every) in enumerate(lines.items()):
        colour = f"C{at % 10}"
        losses.plot(*_curve(every, "loss"), color=colour, linewidth=0.4, alpha=0.6)
        losses.plot(
            *_curve(every, "eval_loss"), color=colour, linewidth=1.2, marker=".", markersize=3, label=label
        )
        right = _curve(every, "eval_first_token_accuracy")
        rights.plot(*right, color=colour, linewidth=1.2, marker=".", markersize=3)
    # An imitation of great weight would squeeze the evaluations into a line at the bottom.
    evaluated = [value for every in lines.values() for value in _curve(every, "eval_loss")[1]]
    highest = max(filter(math.isfinite, evaluated), default=0.0)
    if highest > 0:
        losses.set_ylim(0, 1.1 * highest)
    losses.set_title("evaluation loss; thin: training loss", fontsize=10)
    losses.set_ylabel("nats a token; in training all objectives", fontsize=9)
    rights.set(ylim=(-0.02, 1.02))
    rights.set_title("share of right first tokens, evaluation", fontsize=10)
    figure.supxlabel(f"{title}: step", fontsize=10)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    drawing.write(figure, out)


def lines_of_training(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's diagnostics, without a half one at the end. Raises `UserError`."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"report: {path} cannot be read, expected the {FILE} of a training.") from error
    records = []
    for at, text in enumerate(texts):
        try:
            line = json.loads(text)
            records.append({**line, "step": int(line["step"])})
        except (ValueError, TypeError, KeyError) as error:
            if at == len(texts) - 1:
                break  # half a line: the training is under way, or was killed
            raise UserError(
                f"report: {path}, line {at + 1}: found no step, expected the {FILE} of a training."
            ) from error
    return records


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    there = [line for line in lines if line.get(key) is not None]
    return [line["step"] for line in there], [line[key] for line in there]
