"""`latentwire launch` and `launches`: a study on another machine, from its first contact to the machine's end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.cli.options import Runs
from latentwire.errors import UserError

launches_app = typer.Typer(help="List, follow and stop launches.", rich_markup_mode=None)
app.add_typer(launches_app, name="launches")
Launches = Annotated[Path, typer.Option(help="The folder of all launches.")]
Name = Annotated[str, typer.Argument(help="A launch's name or folder.")]


@launches_app.callback(invoke_without_command=True)
def _launches(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def launch(
    study: Annotated[str, typer.Argument(help="A template's name or a YAML file.")],
    on: Annotated[str, typer.Option(help="ssh:HOST[:PORT], slurm, sky:CLOUD, or here[:FOLDER] for a rehearsal.")],
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage and what it needs; repeatable.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; may be repeated.")] = None,
    preset: Annotated[str | None, typer.Option(help="The size of every wire stage: smoke or hero.")] = None,
    runs: Runs = Path("runs"),
    launches: Launches = Path("launches"),
    folder: Annotated[str, typer.Option(help="The folder there. [default: ~/latentwire-launches/NAME]")] = "",
    python: Annotated[str | None, typer.Option(help="A Python there, by its absolute path.")] = None,
    environment: Annotated[
        str | None,
        typer.Option(help="A virtual environment there that has all requirements; none is made."),
    ] = None,
    extras: Annotated[bool, typer.Option("--extras", help="Also install for lm-eval, GGUF and hub data.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(help="A variable of this shell that the run gets, such as HF_TOKEN; no file ever holds it."),
    ] = None,
    ssh_option: Annotated[list[str] | None, typer.Option(help="What ssh -o takes; may be repeated.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for Slurm (slurm_partition=gpu) or SkyPilot (accelerators=H100:1)."),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(help="home: the machine waits until everything is here; needed on some clouds."),
    ] = None,
    restart: Annotated[int, typer.Option(help="Start again this often after a failure; finished work stays.")] = 0,
    budget_hours: Annotated[float | None, typer.Option(help="End after this time, results or not.")] = None,
    budget_dollars: Annotated[float | None, typer.Option(help="End when this is spent; needs --price.")] = None,
    price: Annotated[float | None, typer.Option(help="Dollars an hour.")] = None,
    down: Annotated[str | None, typer.Option(help="A command, run here, that gives the machine back.")] = None,
    check_down: Annotated[
        str | None, typer.Option(help="A command that succeeds once it is gone. [default: it no longer answers]")
    ] = None,
    alarm: Annotated[str | None, typer.Option(help="A command; $LATENTWIRE_ALARM says what happened.")] = None,
    stall_minutes: Annotated[float, typer.Option(help="An alarm when nothing has moved for so long.")] = 20,
    patience_minutes: Annotated[float, typer.Option(help="An alarm when it has not answered for so long.")] = 15,
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 15,
    detach: Annotated[bool, typer.Option("--detach", help="End once the run has started.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; do nothing.")] = False,
) -> None:
    """Run a study on another machine; every stage's results come home, verified. The same command goes on."""
    from latentwire.launching import launcher
    from latentwire.launching.launch_record import LaunchPlan

    words = [word for name in stage or () for word in ("--stage", name)]
    words += ["--preset", preset] if preset else []
    plan = LaunchPlan(
        study=study,
        on=on,
        arguments=tuple(words),
        folder=folder,
        python=python,
        environment=environment,
        forwarded=tuple(env or ()),
        ssh_options=tuple(ssh_option or ()),
        settings=_settings(option or ()),
        results=results,
        hours=_hours(budget_hours, budget_dollars, price),
        restart=restart,
        down=down,
        check_down=check_down,
        alarm=alarm,
        stall_minutes=stall_minutes,
        patience_minutes=patience_minutes,
        every=every,
    )
    if status := launcher.launch(
        plan, set_ or (), preset, runs, launches, extras=extras, detach=detach, dry_run=dry_run
    ):
        raise typer.Exit(status)


@launches_app.command("list")
def list_launches(launches: Launches = Path("launches")) -> None:
    """List all launches, oldest first."""
    from latentwire.launching import launcher

    print(*(launcher.listed(launches) or [f"no launches in {launches}"]), sep="\n")


@launches_app.command("watch")
def watch_launch(name: Name, runs: Runs = Path("runs"), launches: Launches = Path("launches")) -> None:
    """Follow a launch that has started, to its end."""
    from latentwire.launching import launcher

    if status := launcher.watch(name, runs, launches):
        raise typer.Exit(status)


@launches_app.command("stop")
def stop_launch(name: Name, runs: Runs = Path("runs"), launches: Launches = Path("launches")) -> None:
    """Stop a launch's run, bring home what there is, and give the machine back."""
    from latentwire.launching import launcher

    if status := launcher.stop(name, runs, launches):
        raise typer.Exit(status)


def _settings(pairs: list[str] | tuple[()]) -> dict[str, str]:
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UserError(f"--option: found {pair!r}, expected KEY=VALUE.")
    return dict(pair.partition("=")[::2] for pair in pairs)


def _hours(hours: float | None, dollars: float | None, price: float | None) -> float | None:
    if dollars is None:
        return hours
    if price is None or not price > 0:
        raise UserError("--budget-dollars: found no --price, expected dollars an hour above 0.")
    return min(hours, dollars / price) if hours is not None else dollars / price
