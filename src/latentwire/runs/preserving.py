"""Runs that are kept: copied with their artifacts and parents, each with an entry in a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.runs import manifest, preserved_facts
from latentwire.runs.manifest import Entry, Manifest
from latentwire.runs.store import ENDED, LOCK, Run, scan
from latentwire.runs.verification import RunFault, verify_run


@dataclass(frozen=True)
class PersonsWords:
    """What only a person knows of a run; None where nothing is said yet.

    Attributes:
        why: why it was run.
        wrong: what went wrong, or `nothing`.
        verdict: how close it is to publishable.
        next: what the next run must change.
    """

    why: str | None = None
    wrong: str | None = None
    verdict: str | None = None
    next: str | None = None

    def fields(self) -> dict[str, str | None]:
        """By field of an entry."""
        words = {
            manifest.WHY: self.why,
            manifest.WRONG: self.wrong,
            manifest.VERDICT: self.verdict,
            manifest.NEXT: self.next,
        }
        return {name: " ".join(text.split()) if text else None for name, text in words.items()}


def preserve(run: Run, root: Path, to: Path, words: PersonsWords, cite: Sequence[str] = ()) -> tuple[Path, Entry]:
    """Copy a run and the runs that it starts from, and write or complete its entry in the manifest.

    A run that is preserved already is not copied again; its entry gets what is said now.

    Args:
        run: the run.
        root: the folder of all runs, where its parents are.
        to: the folder of preserved runs.
        words: what a person says of it.
        cite: files of the run to cite beside those that every run of its kind has.

    Returns:
        The copy's folder, and the entry.

    Raises:
        UserError: the run is under way or has changed since it ended, a file to cite is not there, or something
            cannot be written.
    """
    kept = Manifest.read(to)
    lineage = [run, *_parents(run, root)]
    for each in lineage:
        _check(each)
    for name in cite:
        if not (run.folder / name).is_file():
            raise UserError(f"--cite: found no file {name!r} in {run.folder}, expected one of the run's files.")
    places = [_copy(each, to / place_of(each)) for each in lineage]
    facts = preserved_facts.fields(run, root, lineage[1:], cite)
    if root.resolve() == to.resolve() and place_of(run) in kept.entries:
        # The evaluations of a training may not be here: what was written when it was copied stays.
        facts = {name: text for name, text in facts.items() if name == manifest.ARTIFACTS and cite}
    entry = kept.update(place_of(run), {**facts, **words.fields()})
    try:
        kept.write(to)
    except OSError as error:
        raise UserError(f"preserve: {to} cannot be written ({error.strerror}).") from error
    return places[0], entry


def place_of(run: Run) -> str:
    """Where a run lies below a folder of runs: STUDY/STAGE/RUN."""
    return (
        run.record.run
        if run.record.run.count("/") == 2
        else f"{run.record.study}/{run.record.stage}/{run.folder.name}"
    )


def is_preserved(folder: Path) -> bool:
    """Whether a folder has a manifest of preserved runs."""
    try:
        return manifest.MARK in (folder / manifest.FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def verify_manifest(folder: Path) -> Iterator[RunFault]:
    """What is still empty in the entries of preserved runs, and entries without a run.

    Raises:
        UserError: the manifest cannot be read.
    """
    kept = Manifest.read(folder)
    there = {place_of(run) for run in scan(folder)[0]}
    for name, entry in kept.entries.items():
        if name not in there:
            problem = f"has an entry, but no run is at {folder / name}"
            yield RunFault(name, manifest.FILE, problem, "incomplete")
        for missing in entry.empty:
            option = manifest.PERSONS.get(missing)
            how = (
                f"fill it in, or run `latentwire runs preserve {name} {option} ...`"
                if option
                else "preserve the run again"
            )
            yield RunFault(name, manifest.FILE, f"{missing!r} is empty; {how}", "empty")


def _parents(run: Run, root: Path) -> list[Run]:
    """The runs that a run starts from, directly or not, the nearest first."""
    parents: dict[str, Run] = {}
    for parent in run.record.parents.values():
        try:
            read = Run.read(root / parent.run)
        except UserError as error:
            raise UserError(
                f"preserve: {run.record.run} starts from {parent.run}, which is not in {root}; expected it there, "
                "for without it the run cannot be reproduced."
            ) from error
        for ancestor in (read, *_parents(read, root)):
            parents.setdefault(ancestor.record.run, ancestor)
    return list(parents.values())


def _check(run: Run) -> None:
    if run.status == "running":
        raise UserError(f"preserve: {run.record.run} is under way, expected a run that has ended.")
    faults = [fault for fault in verify_run(run) if fault.kind == "changed"]
    if faults:
        raise UserError(f"preserve: {faults[0]}; expected a run that is as it was when it ended.")


def _copy(run: Run, place: Path) -> Path:
    """A run's folder at its place, whole or not at all."""
    if place.exists():
        other = Run.read(place).record
        if other.identity != run.record.identity or other.artifacts != run.record.artifacts:
            raise UserError(f"preserve: {place} holds another run, expected this one or nothing.")
        return place
    partial = place.with_name(f".{place.name}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(run.folder, partial, ignore=_not_kept)
        copied = Run(partial, run.record)
        if run.record.status in ENDED and (changed := copied.changed_artifacts("")):
            raise UserError(f"preserve: {changed[0]} did not arrive as it was; check the disk of {place.parent}.")
        partial.rename(place)
    except OSError as error:
        raise UserError(f"preserve: {place} cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _not_kept(folder: str, names: Sequence[str]) -> set[str]:
    """The lock, unfinished files, and what an interrupted training resumes from."""
    unneeded: Mapping[str, bool] = {name: name == LOCK or name == "last" or name.startswith(".") for name in names}
    return {name for name, left_out in unneeded.items() if left_out}
