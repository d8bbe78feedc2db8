"""The commands: parse, call, print. The work is done by the packages below."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from latentwire.errors import UserError
from latentwire.importing import importable_here
from latentwire.studies import templates
from latentwire.version import __version__

if TYPE_CHECKING:
    from rich.table import Table

    from latentwire.lm.loading.load_settings import Loading
    from latentwire.lm.model import LM
    from latentwire.lm.prompt_settings import PromptSettings

app = typer.Typer(
    name="latentwire",
    help="How a decoder language model reads its context, and what happens when we change that.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit status: 0 done, 1 the run failed or a check did not hold, 2 bad input.",
)

Model = Annotated[
    str, typer.Option(help="embedded:heron, embedded:wren, a local folder, a .gguf file or a hub id.")
]
Adapter = Annotated[Path | None, typer.Option(help="The folder of a PEFT adapter: LoRA or prefix tuning.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask in the model's chat template.")]
Instruction = Annotated[
    str | None, typer.Option(help="A line before each question, such as: Answer with a few words of the passage.")
]
System = Annotated[str | None, typer.Option(help="The text of the chat's system turn.")]
FormatFile = Annotated[
    Path | None,
    typer.Option("--prompt-format", help="A JSON or YAML file of prompt settings; the options above go over it."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. [default: float32 on a CPU, bfloat16 on an accelerator]"),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(help='Where modules go: auto, or a JSON mapping of module names to devices such as {"": 1}.'),
]
Bits = Annotated[
    int | None, typer.Option(help="Round the weights to 4 or 8 bits while loading; needs bitsandbytes and a GPU.")
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on the hub; MODEL@REVISION says the same.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="The most memory to use, such as 40GiB for each accelerator, or 0=40GiB+cpu=100GiB."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]
Runs = Annotated[Path, typer.Option(help="The folder of all runs.")]
# Typer 0.28 carries its own copy of click, older ones use click: this is the usage error of either.
_UsageError: Any = typer.BadParameter.__base__
# Before PyTorch is loaded: its waiting threads would spin, and two processes on the same cores fall to a tenth.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
DEFAULT_WIRES = ["text", "text,mask=prefix", "none"]


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    if version:
        print(f"latentwire {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


class _WithWires(TyperCommand):
    """A command whose help ends with every kind of wire, as the wires describe themselves."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        # What `wires.described()` returns, kept in a file so that help does not wait for PyTorch.
        described = (Path(__file__).parent / "wires" / "kinds.txt").read_text(encoding="utf-8")
        formatter.write("\nWires:\n" + indent(described, "  "))
        super().format_epilog(ctx, formatter)


@app.command("eval", cls=_WithWires)
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
    from latentwire.evaluation.several_readers import evaluate_readers
    from latentwire.files import check_writable, write_atomically
    from latentwire.lm.decoding import DecodingSettings
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
    lm = _load(model, adapter, loading, prompts)
    others = dict.fromkeys(arm.reader for arm in arms if arm.reader is not None)
    elsewhere = loading.without_revision()
    readers: dict[str | None, LM] = {
        name: lm if name == model else _load(name, None, elsewhere, prompts) for name in others
    }
    readers[None] = lm
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
            run = stack.enter_context(evaluation_run.recorded(out, asked, [model, *others], tasks, files))
        started = time.monotonic()
        with counted("eval", "answers", count) as add:
            result = evaluate_readers(
                readers, tasks, arms, limit=limit, progress=lambda arm, task, done: add(done)
            )
        seconds = time.monotonic() - started
        report = Report.of(readers, tasks, arms, result, limit)
        if run is not None:
            evaluation_run.finish(run, report, limit, seconds)
    if show:
        _print(shown(readers, tasks, arms, result, show, limit))
    _print([*report.parts(model), *remarks])
    del sources  # alive until here: wires hold them weakly
    if json_file is not None:
        numbers = {"model": model, "wire": arms[0].label, **report.numbers()}
        if adapter is not None:
            numbers["adapter"] = str(adapter)
        write_atomically(json_file, json.dumps(numbers, indent=1) + "\n")
    columns = sum(outcome.tokens for outcome in result.outcomes)
    print(f"{model}: {len(result.outcomes):,} answers, {columns:,} prompt tokens in {seconds:.0f} s", end="")
    print("".join([f"; numbers in {json_file}" if json_file else "", f"; run in {out}" if out else ""]))


@app.command(cls=_WithWires)
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
    from latentwire.evaluation.eval_report import audited
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
    chosen = [wires.parse(text) for text in wire or DEFAULT_WIRES[:2]]
    prompts = PromptSettings.asked(prompt_format, chat=chat, instruction=instruction, system=system)
    tasks = resolve(task or ["world"], data)
    lm = _load(model, adapter, loading, prompts)
    examples = [example for task_ in tasks for example in task_.examples("validation", 4)]
    problems = 0
    for each in chosen:
        found = run_audit(lm, each, examples, length=length)
        _print(audited(found))
        problems += len(found.problems)
    if problems:
        raise typer.Exit(1)


@app.command()
def grow(
    name: Annotated[str, typer.Argument(help="heron or wren.")],
    seed: Annotated[
        list[int] | None,
        typer.Option(help="The first seed is the model's; others are grown for its card only. [default: 0]"),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write. [default: ./NAME]")] = None,
) -> None:
    """Train an embedded model again from random weights, and measure it."""
    from latentwire.training.growing.regrow import regrow

    folder = out or Path(name)
    regrow(name, seed or [0], folder, _report_growth, print)
    print(f"what it can do: {folder / 'card.md'}")


def _report_growth(found: dict[str, float]) -> None:
    print(" ".join(f"{name} {value:.3f}".removesuffix(".000") for name, value in found.items()), flush=True)


@app.command()
def init(
    template: Annotated[str, typer.Argument(help=f"{', '.join(templates())}.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path("study.yaml"),
) -> None:
    """Write a study template to a file, to be changed."""
    from latentwire.studies import commands

    commands.init(template, out)


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="A template's name or a YAML file.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage and the stages it needs; may be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, such as stages.ft.steps=100; may be repeated."),
    ] = None,
    runs: Runs = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is done already.")] = False,
    preset: Annotated[
        str | None, typer.Option(help="The size of every wire stage: smoke or hero. --set takes precedence.")
    ] = None,
) -> None:
    """Run a study: finished stages are not run again, interrupted ones resume."""
    from transformers.utils import logging

    from latentwire.studies import commands

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if status := commands.run(study, stage or (), set_ or (), runs, fresh=fresh, preset=preset):
        raise typer.Exit(status)


runs_app = typer.Typer(help="List and show the runs of studies.", rich_markup_mode=None)
app.add_typer(runs_app, name="runs")


@runs_app.callback(invoke_without_command=True)
def _runs(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@runs_app.command("list")
def list_(runs: Runs = Path("runs")) -> None:
    """List all runs, oldest first."""
    from latentwire.runs import run_tables, store

    readable, unreadable = store.scan(runs)
    if readable or unreadable:
        print(*run_tables.listed(readable, unreadable), sep="\n")
    else:
        print(f"no runs in {runs}")


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


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(help="train, weights, loss, decode, score, wire or load; or plot with FILES.")
    ],
    files: Annotated[list[Path] | None, typer.Argument(help="For plot: files that --json wrote.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="tiny, 1b, 3b or 8b, with random weights. [default: 3b on an accelerator, else tiny]"),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also other lengths, batches and shapes.")] = False,
    only: Annotated[
        str, typer.Option(help="Only one part, such as long of train; sweep for the sweep only.")
    ] = "",
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16. [default: float32 on a CPU]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    out: Annotated[Path, typer.Option(help="For plot: the folder for the pictures.")] = Path("plots"),
) -> None:
    """Measure this engine beside what you would otherwise run, and beside the machine's limit."""
    from latentwire.bench import measuring

    if name == "plot":
        measuring.plot(files or (), out)
    elif files:
        raise UserError(f"bench: found the file {files[0]} after {name}, expected files after plot only.")
    else:
        measuring.run(name, shape=shape, sweep=sweep, only=only, dtype=dtype, json_file=json_file)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="A study's folder, where its summary.json is.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help=".svg or .png [default: in the folder]")] = None,
) -> None:
    """Draw the scores of latent arms against bytes and against facts per latent, and the loss of trainings."""
    from latentwire.studies import figures

    for path in figures.draw(study, out or study / "curves.svg"):
        print(path)


@app.command()
def doctor() -> None:
    """Show what this machine has, and whether the embedded models are intact."""
    from latentwire.doctor import examine

    healthy = True
    for finding in examine():
        print(f"{'ok  ' if finding.healthy else 'BAD '} {finding.subject:24} {finding.detail}")
        healthy &= finding.healthy
    if not healthy:
        raise typer.Exit(1)


def _load(model: str, adapter: Path | None, loading: Loading, prompts: PromptSettings | None) -> LM:
    from transformers.utils import logging

    from latentwire.lm.model import LM

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return LM.load(model, loading, adapter=adapter, prompts=prompts)


def _print(parts: Iterable[Table | str]) -> None:
    from latentwire.printing import console

    screen = console()
    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            screen.print(part)


INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def main() -> None:
    """Entry point: one sentence and status 2 for bad input, a traceback only under `--debug`."""
    importable_here()
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # Typer turns Ctrl-C into this status without a word
            raise KeyboardInterrupt
        sys.exit(status)
    except _UsageError as error:
        sys.exit(_say(f"{str(error.format_message()).rstrip('.?')}; see {_command()} --help.", 2))
    except UserError as error:
        if debug:
            raise
        sys.exit(_say(str(error), 2))
    except (typer.Abort, KeyboardInterrupt):
        # Another Ctrl-C must not take the sentence away, nor end the program in a traceback while it closes.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(_say("stopped.", INTERRUPTED))
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        sys.exit(
            _say(
                f"failed with {kind}: {str(error).splitlines()[0] if str(error) else ''} (--debug shows where)", 1
            )
        )


def _say(sentence: str, status: int) -> int:
    print(f"latentwire: {sentence}", file=sys.stderr)
    return status


def _command() -> str:
    known = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return " ".join(["latentwire", *[word for word in sys.argv[1:2] if word in known]])


if __name__ == "__main__":
    main()
