"""One side of a comparison: an arm's outcomes, over one run or over several that differ in their seeds.

A side is written

    RUN              a run's folder, or STUDY/STAGE for its newest finished run
    STUDY            every arm of a study, each stage's newest finished run
    RUN:ARM          one arm; a pattern such as latent-* is one arm whose seeds are the arms that match
    STUDY/STAGE-*    a pattern of stages: one arm whose seeds are the stages that match
    A+B+C            the same from runs that are named one by one
    FILE or FOLDER   sample logs of lm-eval; FILE:FILTER reads one of its filters
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from latentwire.errors import UserError, one_of
from latentwire.evaluation import lm_eval_samples
from latentwire.evaluation.lm_eval_samples import Sample
from latentwire.evaluation.outcomes import Outcome, read_outcomes
from latentwire.evaluation.summarize import by_arm
from latentwire.runs.store import ENDED, OUTCOMES, Run, find, runs

SEED = re.compile(r"(.+)-seed(\d+)")
"""How a study names the stages of its `seeds`: NAME-seed0, NAME-seed1, ..."""


@dataclass(frozen=True)
class Side:
    """What is compared.

    Attributes:
        label: as it was written.
        arms: by arm, outcomes by seed. In a study's side arms are written STAGE/ARM.
        examples: by task, the ids of all its examples.
        contents: by task, the hash of its examples, where the run recorded it.
        trained: whether its weights were trained, so that one seed is a limit.
        samples: lm-eval's samples by task, which become outcomes beside a run's.
    """

    label: str
    arms: dict[str, dict[str, list[Outcome]]] = field(default_factory=dict)
    examples: dict[str, set[str]] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    trained: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def only(self, pattern: str) -> Side:
        """The side with the arms that a pattern names, which are one arm's seeds if they are several.

        Raises:
            UserError: no arm is called so.
        """
        named = {name: each for name, each in self.arms.items() if fnmatchcase(name, pattern) or name == pattern}
        if pattern in named:
            named = {pattern: named[pattern]}
        if not named:
            raise UserError(
                f"compare: {self.label}: found no arm {pattern!r}, expected {one_of(pattern, self.arms)}."
            )
        if len(named) == 1:
            return replace(self, arms=named)
        return replace(self, arms={pattern: {seed: one for each in named.values() for seed, one in each.items()}})


def read_side(root: Path, text: str) -> Side:
    """The side that a text names.

    Args:
        root: the folder of all runs.
        text: see the module.

    Raises:
        UserError: nothing is called so, or a run has no outcomes or has changed since it ended.
    """
    place, arm = _split(root, text)
    if lm_eval_samples.is_log(Path(place)) and not (Path(place) / "run.json").is_file():
        return Side(text, samples=lm_eval_samples.read_logs(Path(place), arm))
    parts = [_runs(root, part) for part in place.split("+")]
    side = _of_runs(root, text, {name: run for part in parts for name, run in part.items()}, whole=len(parts) == 1)
    return side if arm is None else side.only(arm)


def training_seeds(root: Path, run: Run) -> tuple[int, ...]:
    """The seeds of all trainings that a run's weights come from, the earliest first; none for untrained ones."""
    seeds: list[int] = []
    for parent in run.record.parents.values():
        try:
            seeds += training_seeds(root, Run.read(root / parent.run))
        except UserError:
            continue  # a parent that was cleared away: its seed is unknown
    return tuple(seeds + list(run.record.seeds.values()))


def outcomes_of(run: Run) -> list[Outcome]:
    """A finished run's outcomes.

    Raises:
        UserError: it has none, or they have changed since it ended.
    """
    if run.status not in ENDED:
        raise UserError(f"compare: {run.record.run} is {run.status}, expected a finished run.")
    run.check_results()
    path = run.folder / OUTCOMES
    if not path.is_file():
        raise UserError(
            f"compare: {run.record.run} is a {run.record.kind} run without outcomes, expected an evaluation."
        )
    return read_outcomes(path)


def _split(root: Path, text: str) -> tuple[str, str | None]:
    """The place and the arm of a side; a place may itself hold a colon."""
    if Path(text).exists() or (root / text).exists() or ":" not in text:
        return text, None
    place, _, arm = text.partition(":")
    return place, arm


def _runs(root: Path, part: str) -> dict[str, Run]:
    """The runs that one part of a side names, by stage or by their own name."""
    folder = root / part
    if not (folder / "run.json").is_file() and not (Path(part) / "run.json").is_file():
        if "/" not in part.strip("/") and folder.is_dir():
            return _newest(runs(root, part))
        study, _, stage = part.partition("/")
        if re.search(r"[*?\[]", part):
            newest = _newest(runs(root, study, stage))
        else:
            newest = {} if folder.is_dir() else _newest(runs(root, study, f"{stage}-seed*"))
        if newest:
            return newest
        if folder.is_dir() and (ended := _newest(runs(root, study, stage))):
            return ended
    named = find(root, part)
    return {named.record.run: named}


def _newest(every: Iterable[Run]) -> dict[str, Run]:
    """By stage, the newest finished run with outcomes."""
    return {
        run.record.stage: run for run in every if run.record.status in ENDED and OUTCOMES in run.record.artifacts
    }


def _of_runs(root: Path, label: str, named: Mapping[str, Run], *, whole: bool) -> Side:
    if not named:
        raise UserError(f"compare: {label}: found no finished evaluation, expected one with outcomes.")
    # A whole study keeps its stages apart; a pattern, or runs joined by +, are one arm's seeds.
    study = whole and len(named) > 1 and "/" not in label.split(":")[0].strip("/")
    side = Side(label, trained=any(training_seeds(root, run) for run in named.values()))
    for number, (name, run) in enumerate(named.items()):
        outcomes = outcomes_of(run)
        seeded = SEED.fullmatch(run.record.stage)
        stage, seed = (seeded[1], seeded[2]) if seeded else (run.record.stage, _seed(root, run, number))
        for arm, own in by_arm(outcomes).items():
            written = f"{stage}/{arm}" if study else arm
            kept = side.arms.setdefault(written, {})
            if seed in kept:
                seed = f"{seed} ({name or number})"  # two runs of one seed are two runs
            kept[seed] = [replace(outcome, arm=arm) for outcome in own]
        _note_examples(side, run, outcomes)
    return side


def _seed(root: Path, run: Run, number: int) -> str:
    seeds = training_seeds(root, run)
    return "-".join(map(str, seeds)) if seeds else f"#{number}"


def _note_examples(side: Side, run: Run, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        side.examples.setdefault(outcome.task, set()).add(outcome.id)
    hashes = (run.record.results or {}).get("examples_sha256") or run.record.configuration.get("examples_sha256")
    side.contents.update(hashes or {})
