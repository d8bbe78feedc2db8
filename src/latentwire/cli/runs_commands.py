"""`latentwire runs list`, `show`, `compare` and `export`: what finished runs are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import print_parts, runs_app
from latentwire.cli.options import Runs
from latentwire.errors import UserError, one_of

Study = Annotated[str | None, typer.Option(help="Only this study, or a pattern such as 'wire-*'.")]
StageName = Annotated[str | None, typer.Option("--stage", help="Only this stage, or a pattern.")]
StatusName = Annotated[
    list[str] | None,
    typer.Option("--status", help="done, rejected, running, interrupted or failed; may be repeated."),
]
Since = Annotated[
    str | None, typer.Option(help="Began at or after this: 2026-11-29, 2026-11-29T18:00 (UTC), or 6h, 3d, 2w ago.")
]


@runs_app.command("list")
def list_(
    runs: Runs = Path("runs"),
    study: Study = None,
    stage: StageName = None,
    kind: Annotated[str | None, typer.Option(help="evaluate, finetune or wire.")] = None,
    status: StatusName = None,
    since: Since = None,
    until: Annotated[
        str | None, typer.Option(help="Began before the end of this day, or before this time.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="A bound that some arm and task meets, such as 'exact_match>0.5', or a training's number such as "
            "'best_loss<2'; may be repeated."
        ),
    ] = None,
    arm: Annotated[str | None, typer.Option(help="Of this arm only, or a pattern.")] = None,
    task: Annotated[str | None, typer.Option(help="On this task only, or a pattern.")] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False,
) -> None:
    """List runs, oldest first."""
    from latentwire.runs import queries, run_tables

    wanted = queries.query(
        study=study,
        stage=stage,
        kind=kind,
        status=status or (),
        since=since,
        until=until,
        metric=metric or (),
        arm=arm,
        task=task,
    )
    hits, unreadable = queries.search(runs, wanted)
    if json_lines:
        print(queries.as_json(hits), end="")
    elif hits or unreadable:
        print(*run_tables.listed(hits, unreadable), sep="\n")
    else:
        print(f"no such runs in {runs}" if wanted != queries.Query() else f"no runs in {runs}")


@runs_app.command()
def show(
    run: Annotated[str, typer.Argument(help="A run's folder, or STUDY/STAGE for its newest run.")],
    runs: Runs = Path("runs"),
) -> None:
    """Show one run: its origin and its results."""
    from latentwire.printing import console
    from latentwire.runs import run_tables, store

    screen = console()
    for part in run_tables.shown(store.find(runs, run)):
        screen.print(part, soft_wrap=isinstance(part, str), markup=False)


@runs_app.command()
def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="RUN, STUDY/STAGE, RUN:ARM, STUDY, a pattern of stages or arms that differ in their seeds, runs "
            "joined by +, or lm-eval's sample logs (a file or folder). Each is compared with the first.",
        ),
    ],
    runs: Runs = Path("runs"),
    arm: Annotated[str | None, typer.Option(help="Compare this arm of every run that has several.")] = None,
    task: Annotated[
        str | None, typer.Option(help="A task, a family or macro. [default: all top-level ones]")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="[default: each task's primary metric]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
) -> None:
    """Compare runs on the same examples, from their outcomes; p-values are Holm-corrected."""
    from latentwire.files import check_writable
    from latentwire.runs import comparison_tables, run_comparison

    if json_file is not None:
        check_writable(json_file, "json")
    made = run_comparison.compare_runs(runs, sides, arm=arm, task=task, metric=metric)
    print_parts(comparison_tables.compared(made))
    if json_file is not None:
        comparison_tables.write_json(made, json_file)


@runs_app.command()
def export(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs, or STUDY/STAGE. [default: all]")
    ] = None,
    runs: Runs = Path("runs"),
    study: Study = None,
    stage: StageName = None,
    status: StatusName = None,
    since: Since = None,
    metric: Annotated[str | None, typer.Option(help="[default: each task's primary metric]")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task; may be repeated. [default: all top-level ones]")
    ] = None,
    how: Annotated[
        str | None,
        typer.Option("--format", help="csv, markdown or latex. [default: by the file's ending, else csv]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .csv, .md or .tex file. [default: screen]")
    ] = None,
) -> None:
    """Write finished evaluations as a table: one row an arm, every number with its interval."""
    from latentwire.files import check_writable, write_atomically
    from latentwire.runs import exports, queries, store

    chosen = how or exports.ENDINGS.get(out.suffix if out else "", "csv")
    if chosen not in exports.ENDINGS.values():
        raise UserError(f"--format: found {chosen!r}, expected {one_of(chosen, exports.ENDINGS.values())}.")
    if out is not None:
        check_writable(out, "out")
    if names:
        found = [store.find(runs, name) for name in names]
    else:
        wanted = queries.query(study=study, stage=stage, status=status or (), since=since)
        found = [hit.run for hit in queries.search(runs, wanted)[0]]
    rows = exports.arm_rows(runs, found, metric=metric, tasks=task or ())
    text = exports.written(rows, chosen)  # type: ignore[arg-type]
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text)
        print(f"{out}: {len(rows)} arms")
