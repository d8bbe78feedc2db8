"""`latentwire eval` and `latentwire audit`."""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentwire.cli.application import WithWires, app, load, print_parts
from latentwire.cli.options import (
    Adapter,
    Bits,
    Chat,
    DeviceMap,
    Dtype,
    FormatFile,
    Instruction,
    MaxMemory,
    Model,
    Revision,
    System,
    TrustRemoteCode,
)
from latentwire.errors import UserError

if TYPE_CHECKING:
    pass

DEFAULT_WIRES = ["text", "text,mask=prefix", "none"]


@app.command("eval", cls=WithWires)
def eval_(
    model: Model,
    task: Annotated[
        list[str], typer.Option(help="A task, a group of tasks or a task of lm-eval; may be repeated.")
    ],
    wire: Annotated[
        list[str] | None,
        typer.Option(
            help="WIRE[:VARIANT][@READER]; may be repeated. WIRE is KIND[,OPTION=VALUE]..., of the kinds listed "
            "below, or a trained wire: embedded:NAME, its folder, or the folder of the run that trained it. "
            "VARIANT is deranged or counterfactual; for wires that send latents also zero, mean, 8bit, 6bit or "
            "4bit. READER is a model that answers in place of --model. "
            "[default: text, text,mask=prefix and none]"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The file or folder that a task such as squad or jsonl reads.")
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            help="A folder with lm-eval YAML tasks of your own. Their !function code is run: name only a folder "
            "that you trust.",
        ),
    ] = None,
    adapter: Adapter = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Add text and none, and for every trained wire deranged, mean and counterfactual: how much of "
            "the gap between nothing and the text the wire closes, and whether its message is what closes it.",
        ),
    ] = False,
    chat: Chat = False,
    instruction: Instruction = None,
    system: System = None,
    prompt_format: FormatFile = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.")] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="No answer ends before N tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample answers; 0 is greedy. [default: 0]")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass to sample from. [default: 1]")] = None,
    first_temperature: Annotated[float | None, typer.Option(help="Of the first token alone.")] = None,
    first_top_p: Annotated[float | None, typer.Option(help="Of the first token alone.")] = None,
    suppress: Annotated[
        list[str] | None,
        typer.Option(help="TOKEN or TOKEN:STEPS, never chosen, or not in the first STEPS; may be repeated."),
    ] = None,
    show: Annotated[
        int, typer.Option(help="Print the first N prompts of each task with their mask and answers.", min=0)
    ] = 0,
    limit: Annotated[int | None, typer.Option(help="Use only the first N examples of each task.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    bits: Bits = None,
    revision: Revision = None,
    max_memory: MaxMemory = None,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Also leave a run folder here: run.json, outcomes, metrics, samples."),
    ] = None,
) -> None:
    """Score a model on tasks, every wire on the same examples."""
    from latentwire.evaluation import arms as parsing
    from latentwire.evaluation.arms import relay_sources
    from latentwire.evaluation.eval_report import Report
    from latentwire.evaluation.prompts_shown import departures, shown
    from latentwire.evaluation.several_readers import evaluate_readers, readers_of
    from latentwire.files import check_writable, write_atomically
    from latentwire.lm.decoding import DecodingSettings
    from latentwire.lm.halving import Halving
    from latentwire.lm.loading.load_settings import Loading
    from latentwire.lm.prompt_settings import PromptSettings
    from latentwire.runs import evaluation_run
    from latentwire.runs.log import counted
    from latentwire.tasks import resolve
    from latentwire.wires.latent.latent_wire import Latent, locate

    if limit is not None and limit < 1:
        raise UserError(f"limit: found {limit}, expected a whole number of examples, 1 or more.")
    loading = Loading.parse(
        dtype=dtype,
        device_map=device_map,
        bits=bits,
        revision=revision,
        max_memory=max_memory,
        trust_remote_code=trust_remote_code,
    )
    arms = parsing.parse_all(wire or DEFAULT_WIRES, model, controls=controls)
    decoding = DecodingSettings.asked(
        suppress,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=temperature,
        top_p=top_p,
        first_temperature=first_temperature,
        first_top_p=first_top_p,
    )
    tasks = [replace(each, decoding=decoding) for each in resolve(task, data, include_path)]
    if json_file is not None:
        check_writable(json_file, "json")
    if out is not None:
        evaluation_run.check_folder(out)
    prompts = PromptSettings.asked(prompt_format, chat=chat, instruction=instruction, system=system)
    lm = load(model, adapter, loading, prompts)
    elsewhere = loading.without_revision()
    readers = readers_of(arms, lm, model, lambda name: load(name, None, elsewhere, prompts))
    sources = relay_sources(readers, arms, prompts)
    remarks = departures(readers, arms)
    asked = {
        "model": model,
        "adapter": None if adapter is None else str(adapter),
        "tasks": task,
        "arms": [arm.label for arm in arms],
        "limit": limit,
        "prompts": None if prompts is None else prompts.model_dump(mode="json", exclude_none=True),
        "loading": loading.model_dump(mode="json", exclude_defaults=True),
    }
    count = len(arms) * sum(len(each.examples("test", limit)) for each in tasks)
    with ExitStack() as stack:
        run = None
        if out is not None:
            files = {
                f"wire {arm.wire.path}": locate(arm.wire.path) for arm in arms if isinstance(arm.wire, Latent)
            }
            files |= {name: path for name, path in (("data", data), ("adapter", adapter)) if path is not None}
            names = [model, *filter(None, readers)]
            run = stack.enter_context(evaluation_run.recorded(out, asked, names, tasks, files))
        started = time.monotonic()
        with counted("eval", "answers", count) as add:
            result = evaluate_readers(
                readers,
                tasks,
                arms,
                limit=limit,
                progress=lambda arm, task, done: add(done),
                halving=Halving(lambda sentence: print(sentence, file=sys.stderr)),
            )
        seconds = time.monotonic() - started
        report = Report.of(readers, tasks, arms, result, limit)
        if run is not None:
            evaluation_run.finish(run, report, limit, seconds)
    if show:
        print_parts(shown(readers, tasks, arms, result, show, limit))
    print_parts([*report.parts(model), *remarks])
    del sources  # alive until here: wires hold them weakly
    if json_file is not None:
        numbers = {"model": model, "wire": arms[0].label, **report.numbers()}
        if adapter is not None:
            numbers["adapter"] = str(adapter)
        write_atomically(json_file, json.dumps(numbers, indent=1) + "\n")
    columns = sum(outcome.tokens for outcome in result.outcomes)
    print(f"{model}: {len(result.outcomes):,} answers, {columns:,} prompt tokens in {seconds:.0f} s", end="")
    print("".join([f"; numbers in {json_file}" if json_file else "", f"; run in {out}" if out else ""]))


@app.command(cls=WithWires)
def audit(
    model: Model,
    wire: Annotated[
        list[str] | None,
        typer.Option(help="A WIRE as in eval; may be repeated. [default: text and text,mask=prefix]"),
    ] = None,
    adapter: Adapter = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Whose examples to read; may be repeated. [default: world]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The file of a task that is read from one.")] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of the longest prompt. [default: two sliding windows, 256 to 2,048]", min=8),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Also write what was found here; as audit.json in a study's folder, its report shows it.",
        ),
    ] = None,
    chat: Chat = False,
    instruction: Instruction = None,
    system: System = None,
    prompt_format: FormatFile = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    bits: Bits = None,
    revision: Revision = None,
    max_memory: MaxMemory = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check whether a model, with this attention, leaks labels or sees ahead; status 1 if it does."""
    from latentwire import wires
    from latentwire.evaluation.audit import audit as run_audit
    from latentwire.evaluation.audit_file import write_audits
    from latentwire.evaluation.eval_report import audited
    from latentwire.files import check_writable
    from latentwire.lm.loading.load_settings import Loading
    from latentwire.lm.prompt_settings import PromptSettings
    from latentwire.tasks import resolve

    loading = Loading.parse(
        dtype=dtype,
        device_map=device_map,
        bits=bits,
        revision=revision,
        max_memory=max_memory,
        trust_remote_code=trust_remote_code,
    )
    if json_file is not None:
        check_writable(json_file, "json")
    chosen = [wires.parse(text) for text in wire or DEFAULT_WIRES[:2]]
    prompts = PromptSettings.asked(prompt_format, chat=chat, instruction=instruction, system=system)
    tasks = resolve(task or ["world"], data)
    lm = load(model, adapter, loading, prompts)
    examples = [example for task_ in tasks for example in task_.examples("validation", 4)]
    audits = []
    for each in chosen:
        audits.append(run_audit(lm, each, examples, length=length))
        print_parts(audited(audits[-1]))
        if json_file is not None:
            write_audits(json_file, model, None if adapter is None else str(adapter), audits)
    if any(each.problems for each in audits):
        raise typer.Exit(1)
