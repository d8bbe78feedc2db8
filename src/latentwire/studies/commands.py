"""What the commands `init` and `run` do and print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from latentwire.errors import UserError, one_of
from latentwire.printing import console
from latentwire.process_group import ALONE, Group
from latentwire.runs.log import Log
from latentwire.studies import following, loading, references, runner, study_summary, summary_tables, templates
from latentwire.studies.spec import Study


def init(template: str, out: Path) -> None:
    """Write a template to a new file.

    Raises:
        UserError: There is no such template, or the file exists already or cannot be written.
    """
    texts = templates()
    if template not in texts:
        raise UserError(f"template: found {template!r}, expected {one_of(template, texts)}.")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(texts[template])
    except FileExistsError as error:
        raise UserError(f"out: {out} is there already, expected a new file.") from error
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror}).") from error
    print(f"{out}: {template}. Run it with: latentwire run {out}")


def run(
    study: str,
    stages: Sequence[str],
    changes: Sequence[str],
    root: Path,
    *,
    fresh: bool,
    preset: str | None = None,
    then: Callable[[Path], None] | None = None,
    track: Sequence[str] = (),
    group: Group = ALONE,
) -> int:
    """Carry out a study and print its tables.

    Args:
        then: Called with the study's folder when all of it is written.
        group: The processes that share the work. The first alone writes and prints.

    Returns:
        The exit status: 1 if a stage failed or a gate did not hold.

    Raises:
        UserError: Bad input.
    """

    def settled() -> Study:
        loaded = loading.load(study, changes, preset)
        references.check_processes(loaded, group.size)
        return loaded

    made = group.leader_first(settled)
    if track:
        made = made.model_copy(update={"trackers": tuple(dict.fromkeys([*made.trackers, *track]))})
    if not group.leads:
        return following.follow(made, group)
    try:
        carried = runner.run(made, root, Log(), stages=stages, fresh=fresh, group=group)
    except runner.StageFailed as error:
        print(f"latentwire: {error}.", file=sys.stderr)
        return 1
    console(200).print(summary_tables.screen(made, carried.summary))
    tables = carried.folder / study_summary.MARKDOWN
    print(f"\n{made.name}: all tables are in {tables}, and all numbers in {study_summary.JSON} beside it")
    if then is not None:
        then(carried.folder)
    failed = study_summary.failed_gates(carried.summary)
    for name in failed:
        print(f"latentwire: the gate {name!r} did not hold.", file=sys.stderr)
    rejected = study_summary.rejected(carried.summary)
    for name in rejected:
        print(f"latentwire: the stage {name!r} is rejected: a gate of its `accept` did not hold.", file=sys.stderr)
    return 1 if failed or rejected else 0
