"""`latentwire runs verify`, `preserve` and `watch`: runs that are checked, kept, and under way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import runs_app
from latentwire.cli.options import Runs

Preserved = Annotated[Path, typer.Option(help="The folder of preserved runs.")]


@runs_app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Runs, or STUDY/STAGE. [default: all]")
    ] = None,
    runs: Runs = Path("runs"),
    preserved: Preserved = Path("preserved"),
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Also load every checkpoint and compare its logits.")
    ] = False,
) -> None:
    """Check hashes and completeness of runs, and the manifest of preserved ones; exit status 1 at a fault."""
    from latentwire.runs import preserving, store, verification
    from latentwire.runs.log import counted

    places = [] if names else [folder for folder in (runs, preserved) if folder.is_dir()]
    places = list({folder.resolve(): folder for folder in places}.values())
    scanned = [store.scan(folder) for folder in places] or [([store.find(runs, name) for name in names or ()], [])]
    count = sum(len(readable) + len(unreadable) for readable, unreadable in scanned)
    faults: list[verification.RunFault] = []
    with counted("verify", "runs", count) as add:
        for root, (readable, unreadable) in zip(places or [runs], scanned, strict=True):
            faults += verification.verify_all(readable, unreadable, root, add)
    if checkpoints:
        from latentwire.runs import checkpoint_checks

        every = [run for readable, _ in scanned for run in readable]
        with counted("verify checkpoints", "runs", count) as add:
            faults += checkpoint_checks.check_all(every, add)
    for folder in places:
        if preserving.is_preserved(folder):
            faults += preserving.verify_manifest(folder)
    for fault in faults:
        print(f"{'FAIL' if fault.fails else 'note'}  {fault}")
    failed = {fault.run for fault in faults if fault.fails}
    print(f"{count} runs checked, {len(failed)} with something wrong")
    if failed:
        raise typer.Exit(1)


@runs_app.command()
def preserve(
    run: Annotated[str, typer.Argument(help="A run's folder, or STUDY/STAGE for its newest run.")],
    why: Annotated[str | None, typer.Option(help="Why it was run.")] = None,
    verdict: Annotated[str | None, typer.Option(help="How close it is to publishable, and what for.")] = None,
    wrong: Annotated[str | None, typer.Option(help="What went wrong, or: nothing.")] = None,
    next_: Annotated[str | None, typer.Option("--next", help="What the next run must change.")] = None,
    cite: Annotated[
        list[str] | None, typer.Option(help="A file of the run to cite first; may be repeated.")
    ] = None,
    runs: Runs = Path("runs"),
    to: Annotated[Path, typer.Option(help="The folder of preserved runs.")] = Path("preserved"),
) -> None:
    """Copy a run with its artifacts and parents, and keep its entry in README.md there."""
    from latentwire.errors import UserError
    from latentwire.runs import manifest, preserving, store

    try:
        kept = store.find(runs, run)
        root = runs
    except UserError:
        if not preserving.is_preserved(to):
            raise
        kept, root = store.find(to, run), to  # it is preserved already: its entry gets more words
    words = preserving.PersonsWords(why=why, wrong=wrong, verdict=verdict, next=next_)
    place, entry = preserving.preserve(kept, root, to, words, cite or ())
    print(f"{place}: preserved; its entry is in {to / manifest.FILE}")
    for name in entry.empty:
        print(f"empty: {name} ({manifest.PERSONS.get(name, 'preserve it again')})")


@runs_app.command()
def watch(
    run: Annotated[
        str,
        typer.Argument(
            help="A run, STUDY/STAGE, a study's folder or one synced from elsewhere: the run under way."
        ),
    ],
    runs: Runs = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="Look once and end, for scripts.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 10.0,
    stalled_after: Annotated[
        float, typer.Option(help="Minutes without anything written after which a run is stalled.", min=0.01)
    ] = 10.0,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a look.")] = False,
) -> None:
    """Show a run's progress until it ends; exit status 1 if it fails, stalls or its log ends in a traceback."""
    from latentwire.runs import watching

    seconds = 60 * stalled_after
    if once:
        looks = iter([watching.look(watching.pick(runs, run), stalled_after=seconds)])
    else:
        looks = watching.watch(runs, run, every=every, stalled_after=seconds)
    alarm = None
    for progress in looks:
        print(progress.to_json() if json_lines else "\n".join(watching.sentences(progress)), flush=True)
        alarm = progress.alarm
    if alarm:
        raise typer.Exit(1)
