"""`latentwire estimate`: will it fit, how long, and for how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.application import app
from latentwire.cli.options import Runs


@app.command()
def estimate(
    study: Annotated[str, typer.Argument(help="A template's name or a YAML file.")],
    offers: Annotated[
        Path | None, typer.Option(help="A YAML file of GPUs and prices. [default: the one that ships]")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="A run of the study, or its folder: estimate the rest from its own pace, and moving it."
        ),
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Only this stage; may be repeated.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as of run; may be repeated.")] = None,
    preset: Annotated[str | None, typer.Option(help="The size of every wire stage: smoke or hero.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Estimate memory, time and cost of a study on each offer of a GPU; no weights are read."""
    import json

    from transformers.utils import logging

    from latentwire.errors import UserError, one_of
    from latentwire.estimates import forecast, forecast_tables, stage_workloads
    from latentwire.estimates import offers as offering
    from latentwire.estimates.run_pace import pace as pace_of
    from latentwire.files import check_writable, write_atomically
    from latentwire.printing import console
    from latentwire.runs import store
    from latentwire.studies import loading

    logging.set_verbosity_error()
    if json_file is not None:
        check_writable(json_file, "json")
    made, known = loading.load(study, set_ or (), preset), offering.read(offers)
    screen, pace = console(160), None
    names = list(stage or ())
    if run is not None:
        under_way = store.find(runs, run)
        if (name := under_way.record.stage) not in made.stages:
            raise UserError(
                f"run: found the stage {name!r}, expected one of {study}: {one_of(name, made.stages)}."
            )
        names, pace = [name], pace_of(under_way)
    workloads = stage_workloads.count(made, names)
    if pace is None:
        forecasts = forecast.before(workloads, known)
        screen.print(forecast_tables.stages(workloads, known))
    else:
        forecasts = forecast.during(pace, workloads[names[0]], known)
        kind = "answers" if workloads[names[0]].kind == "evaluate" else "steps"
        print(
            f"{names[0]}: {pace.done:,} of {pace.total:,} {kind}, {pace.seconds_each:.3f} s each, "
            f"{pace.evaluations_left} evaluations of {pace.evaluation_seconds:.1f} s to come; "
            f"{pace.seconds_left:,.0f} s left where it runs"
        )
    print()
    screen.print(forecast_tables.table(forecasts, known, moving=pace is not None))
    print(f"\nprices as of {known.checked}; one GPU, stages one after another")
    if json_file is not None:
        numbers = forecast_tables.to_json(workloads, forecasts, known, pace)
        write_atomically(json_file, json.dumps(numbers, indent=1) + "\n")
