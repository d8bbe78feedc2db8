"""The card of an embedded model: how it was grown and what it can do, measured on the test split.

`card.json` is for programs, `card.md` the same for people. Both are in the model's folder.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latentwire import wires
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.summarize import Metrics, summarize
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.lm.scoring.shared_scorer import BATCH_TOKENS
from latentwire.tasks import resolve
from latentwire.training.growing.grow import NO_CONTEXT, WATCHED
from latentwire.version import __version__

ARMS = ("text", "text,mask=prefix", "none")
TASKS = ("tiers", "sums", "choices", "shifted")
EXAMPLES = 2000
LARGE_BATCH_TOKENS = 65_536
"""On an accelerator; a processor loses more by copying so large a cache than it gains."""


LICENCE = (
    "Licence: Apache-2.0, as this package. It was trained on text that the package generates, and on nothing else."
)


def measure(folder: Path, device: str, examples: int = EXAMPLES) -> dict[str, Any]:
    """Metrics (`{arm: {task: {metric: number}}}`) and floors of a model on the test split, in float32.

    Every arm has a process of its own, because one process does not keep an accelerator busy.
    """
    with ProcessPoolExecutor(len(ARMS), multiprocessing.get_context("spawn")) as pool:
        arms = list(pool.map(partial(_measure, folder, device, examples), ARMS))
    metrics = {arm: found for each, _ in arms for arm, found in each.items()}
    return {"examples": examples, "tasks": TASKS, "metrics": metrics, "floors": arms[0][1]}


def _measure(folder: Path, device: str, examples: int, arm: str) -> tuple[Metrics, dict[str, dict[str, float]]]:
    batch_tokens = LARGE_BATCH_TOKENS
    if device == "cpu":
        torch.set_num_threads(1)
        batch_tokens = BATCH_TOKENS
    lm = LM.load(folder, dtype=torch.float32, device=device)
    tasks = resolve(list(TASKS), None)
    result = evaluate(lm, tasks, [wires.parse(arm)], limit=examples, batch_tokens=batch_tokens)
    return summarize(result.outcomes), result.floors


def write(
    folder: Path,
    name: str,
    seed: int,
    recipe: Mapping[str, Any],
    grown: Mapping[str, Any],
    device: str,
) -> None:
    """Measure a grown model and write its card.

    Args:
        grown: what `grow` returned: steps, tokens, seconds and the accuracies that it watched.
    """
    card = {
        "name": name,
        "seed": seed,
        "grown": dict(grown),
        "recipe": dict(recipe),
        "grown_on": _machine(device),
        "measured_on": _machine(device),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "latentwire": __version__,
        **measure(folder, device),
        "other_seeds": {},
        "notes": [],
    }
    _save(folder, card)


def add_seeds(folder: Path, others: Sequence[Path]) -> None:
    """Report other seeds' numbers in a card, so that nobody can have picked the best one.

    Everybody sees what a seed could do on the validation examples when it had grown; of one that was not
    measured on the test split the card has no `metrics`.
    """
    card = json.loads((folder / "card.json").read_text())
    for other in others:
        found = json.loads((other / "card.json").read_text())
        card["other_seeds"][str(found["seed"])] = {key: found[key] for key in ("grown", "metrics")}
    _save(folder, card)


def _save(folder: Path, card: dict[str, Any]) -> None:
    write_atomically(folder / "card.json", json.dumps(card, indent=1) + "\n")
    write_atomically(folder / "card.md", _markdown(card))


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"a {platform.machine()} CPU"
    return f"{name}, torch {torch.__version__}"


def _markdown(card: Mapping[str, Any]) -> str:
    grown = card["grown"]
    others = card["other_seeds"]
    measured: dict[str, Metrics] = {seed: other["metrics"] for seed, other in others.items() if other["metrics"]}
    grown_by = f"latentwire grow {card['name']} --seed {card['seed']}"
    tasks = " ".join(f"--task {task}" for task in card["tasks"])
    header = ["task", "floor", *(f"`{arm}`" for arm in ARMS), *(f"`text`, seed {seed}" for seed in measured)]
    lines = [
        f"# {card['name']}",
        "",
        f"Grown from nothing by `{grown_by}` on {card['grown_on']} in {grown['seconds']:.0f} s: "
        f"{grown['tokens_seen']:,.0f} tokens in {grown['step']:,.0f} steps; LatentWire {card['latentwire']}, "
        f"{card['date']}. The recipe is in `recipe.json`. The seed of the shipped model, 0, was fixed beforehand."
        + ("" if others else " **Other seeds have not been grown yet: single-seed.**"),
        "",
        LICENCE,
        "",
        f"Test split, greedy, float32, n = {card['examples']:,} per task, 95 % intervals over passages, "
        f"measured on {card['measured_on']}: "
        f"`latentwire eval --model embedded:{card['name']} {tasks}`. The floor is the higher of chance and of the "
        "best reader who ignores whom the question is about.",
        "",
        f"| {' | '.join(header)} |",
        f"| --- {'| ---: ' * (len(header) - 1)}|",
    ]
    metrics: Metrics = card["metrics"]
    for task in metrics["text"]:
        cells = [_cell(metrics, arm, task) for arm in ARMS]
        cells += [_cell(found, "text", task, interval=False) for found in measured.values()]
        floors = card["floors"].get(task, {})
        floor = f"{max(floors.values()):.3f}" if floors else ""
        lines.append(f"| {task} | {floor} | " + " | ".join(cells) + " |")
    if others:
        grown_seeds = {str(card["seed"]): grown, **{seed: other["grown"] for seed, other in others.items()}}
        lines += ["", *_growths(grown_seeds)]
    for note in card["notes"]:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _growths(seeds: Mapping[str, Mapping[str, float]]) -> list[str]:
    watched = [name for name in (*WATCHED, NO_CONTEXT) if all(name in grown for grown in seeds.values())]
    lines = [
        "What each seed could do at the end of its growth (validation split, share of answers whose every token "
        "is the likeliest one, causal reading):",
        "",
        f"| seed | seconds | {' | '.join(watched)} |",
        f"| ---: {'| ---: ' * (len(watched) + 1)}|",
    ]
    for seed, grown in seeds.items():
        cells = [f"{grown['seconds']:.0f}", *(f"{grown[name]:.3f}" for name in watched)]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return lines


def _cell(metrics: Metrics, arm: str, task: str, *, interval: bool = True) -> str:
    number = next(iter(metrics[arm][task].values()))
    shown = f"{number['value']:.3f}"
    return f"{shown} [{number['low']:.3f}, {number['high']:.3f}]" if interval else shown
