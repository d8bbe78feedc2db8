"""The page docs/results/prefill-real.md and the outcomes kept beside it."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path

from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.statistics import Comparison, estimate
from latentwire.evaluation.summarize import by_arm
from tests.support.result_cells import near, numbers

RESULTS = Path(__file__).parents[2] / "docs" / "results"
KEPT = RESULTS / "prefill-real"
PAGE = (RESULTS / "prefill-real.md").read_text(encoding="utf-8").replace("−", "-")
ERRORS = (None, "wrong boundary", "wrong relation", "not in the passage", "unreadable")
ALL = 1190
Kept = dict[str, list[Outcome]]


def read_kept(model: str, folder: Path, stages: Sequence[str], seeds: Sequence[str] = ()) -> Kept:
    """The outcomes of a model's stages by `stage/arm`, as far as they were kept, unpacked into a folder.

    With seeds, they are named `stage-seedSEED/arm`: a file holds one seed after the other, and packs better.
    """
    arms: Kept = {}
    for stage in stages:
        file = KEPT / f"{model}.{stage}.jsonl.xz"
        if not file.exists():
            continue
        lines = lzma.decompress(file.read_bytes()).splitlines(keepends=True)
        names = [f"{stage}-seed{seed}" for seed in seeds] or [stage]
        each, rest = divmod(len(lines), len(names))
        assert not rest
        for at, name in enumerate(names):
            path = folder / f"{name}.jsonl"
            path.write_bytes(b"".join(lines[at * each : (at + 1) * each]))
            arms |= {f"{name}/{arm}": own for arm, own in by_arm(read_outcomes(path)).items()}
    return arms


def rows(heading: str, table: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    section = PAGE.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[table]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]


def says(*texts: str) -> None:
    """The page says each text, wherever its lines break."""
    page = " ".join(PAGE.split())
    for text in texts:
        assert text in page, text


def of_task(outcomes: Sequence[Outcome], task: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.task == task]


def is_share(cell: str, outcomes: Sequence[Outcome], metric: str) -> None:
    found = estimate(outcomes, metric)
    assert numbers(cell) == near(found.value, found.low, found.high)


def is_difference(cell: str, found: Comparison) -> None:
    assert numbers(cell) == near(found.difference, found.low, found.high)


def mean(outcomes: Sequence[Outcome], metric: str) -> float:
    return sum(outcome.metrics[metric] for outcome in outcomes) / len(outcomes)


def differing(one: Sequence[Outcome], other: Sequence[Outcome]) -> int:
    """How many answers to questions that both have differ."""
    answers = {each.id: each.prediction for each in other}
    return sum(each.prediction != answers[each.id] for each in one)
