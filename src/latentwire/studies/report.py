"""A study's summary as tables: for the screen in brief, for `summary.md` in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from latentwire.runs.store import Run
from latentwire.studies.shape import Summary
from latentwire.studies.spec import Evaluate, Study


@dataclass(frozen=True)
class Section:
    """A table with its title, and notes below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: Sequence[str] = ()


def markdown(study: Study, runs: Mapping[str, Run], found: Summary) -> str:
    """The whole of `summary.md`."""
    lines = [f"# {study.name}", "", f"Model `{study.model}`, split `{study.split}`. {_seeds(study)}", ""]
    for section in [_stages(study, runs, found), *_sections(study, found, brief=False)]:
        lines += [f"## {section.title}", ""]
        lines += [_row(section.header), _row(["---"] * len(section.header)), *map(_row, section.rows), ""]
        lines += [line for note in section.notes for line in (note, "")]
    return "\n".join(lines)


def screen(study: Study, found: Summary) -> RenderableType:
    """What a person sees at the end: scores of top-level tasks, comparisons, effects on `macro`, gates."""
    shown: list[RenderableType] = []
    for section in _sections(study, found, brief=True):
        table = Table(box=None, pad_edge=False, header_style="bold", title=section.title, title_justify="left")
        for name in section.header:
            table.add_column(name, overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))
        shown += [Text(), table, *map(Text, section.notes)]
    return Group(*shown)


def _sections(study: Study, found: Summary, *, brief: bool) -> Iterator[Section]:
    yield _scores(study, found, brief)
    if found["comparisons"]:
        yield _comparisons(found)
    if found["derived"]["effects"]:
        yield _effects(found, brief)
    if found["derived"]["gates"]:
        yield _gates(found)


def _stages(study: Study, runs: Mapping[str, Run], found: Summary) -> Section:
    rows = []
    for name, stage in found["stages"].items():
        record = runs[name].record if name in runs else None
        results = (record.results if record else None) or {}
        told = (record.error if record else None) or results.get("stopped", "")
        if "steps" in results:
            told = f"{results['steps']} steps, ended by: {told}; best evaluation loss {results['best_loss']:.4f}"
        rows.append([name, study.stages[name].kind, stage["status"], stage["run"] or "", told])
    return Section("Stages", ["stage", "kind", "status", "run", ""], rows, list(_same_rows(study, found)))


def _same_rows(study: Study, found: Summary) -> Iterator[str]:
    """Which of the finetunings that are compared saw the same data."""
    alike: dict[tuple[str, int], list[str]] = {}
    for name in study.effects.after if study.effects else ():
        if name in found["derived"]["finetunings"]:
            results = found["derived"]["finetunings"][name]
            alike.setdefault((results["train_rows_sha256"], results["steps"]), []).append(name)
    for at, names in enumerate(alike.values()):
        same = " saw the same rows, labels, order and number of steps" if len(names) > 1 else ""
        yield f"{'Other rows or steps: ' if at else ''}{', '.join(names)}{same}."


def _scores(study: Study, found: Summary, brief: bool) -> Section:
    tasks = list(dict.fromkeys(t for s in found["stages"].values() for arm in s["metrics"].values() for t in arm))
    if brief:
        tasks = [task for task in tasks if "/" not in task]
    rows, counts = [], set()
    for name, stage in found["stages"].items():
        for arm, metrics in stage["metrics"].items():
            numbers = [next(iter(metrics[task].values())) for task in tasks]
            counts |= {number["n"] for task, number in zip(tasks, numbers, strict=True) if task != "macro"}
            wire = study.stages[name]
            read = wire.arms[arm] if isinstance(wire, Evaluate) else ""
            rows.append([name, arm, read, *(_number({**number}) for number in numbers)])
    n = f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "") if counts else "no"
    notes = [f"Primary metric with its 95 % interval; {n} examples a task, the same ones in every stage."]
    return Section("Scores", ["stage", "arm", "wire", *tasks], rows, notes)


def _comparisons(found: Summary) -> Section:
    rows = []
    for each in found["comparisons"]:
        more = found["derived"]["comparisons"][each["name"]]
        labels = ["primary" if more["primary"] else "exploratory", *["single seed"] * more["single_seed"]]
        rows.append(
            [
                each["name"],
                f"{each['task']} {each['metric']}",
                f"{each['a']} minus {each['b']}",
                f"{each['difference']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]",
                f"{each['p']:.2g}" if more["p_holm"] is None else f"{more['p_holm']:.2g} (Holm)",
                "resolved" if each["resolved"] else f"not resolved (needs {more['resolvable']:.3f})",
                ", ".join(labels),
                f"{more['n']:,}",
            ]
        )
    return Section("Comparisons", ["comparison", "task", "what", "difference", "p", "", "", "n"], rows)


def _effects(found: Summary, brief: bool) -> Section:
    rows = []
    for each in found["derived"]["effects"]:
        if brief and each["task"] != "macro":
            continue
        above = _number(each["above_floor"]) + (", at floor" if each["at_floor"] else "")
        rows.append(
            [
                each["effect"].replace("_", " "),
                each["of"],
                each["task"],
                _number(each["raw"]),
                "at floor" if each["at_floor"] and each["effect"] == "retention" else above,
                f"{each['floor']:.3f} ({each['floor_is']})",
                f"{each['n']:,}",
            ]
        )
    notes = [
        "Above floor: retention is (x − floor)/(baseline − floor), differences are shares of baseline − floor. "
        "At floor: the reading is not resolved above its floor. Recovery: the share of the damage that is undone. "
        "Undefined: what it would be divided by is not resolved above 0."
    ]
    return Section("Effects", ["effect", "of", "task", "raw", "above floor", "floor", "n"], rows, notes)


def _gates(found: Summary) -> Section:
    rows = []
    for gate in found["derived"]["gates"]:
        bound = f"at most {gate['at_most']}" if gate["at_least"] is None else f"at least {gate['at_least']}"
        verdict = {None: "not judged yet", True: "held", False: "NOT HELD"}[gate["held"]]
        if gate["resolved"] is False:
            verdict += " (the interval holds the bound)"
        what = f"{gate['effect'].replace('_', ' ')} of {gate['of']} on {gate['task']}"
        floor = " above floor" if gate["above_floor"] else ""
        rows.append([gate["name"], what + floor, bound, _number(gate), verdict])
    return Section("Gates", ["gate", "what", "bound", "value", ""], rows)


def _seeds(study: Study) -> str:
    trained = any(not isinstance(stage, Evaluate) for stage in study.stages.values())
    return f"Finetunings have one seed ({study.seed}): what is said of them is single-seed." if trained else ""


def _number(number: Mapping[str, Any]) -> str:
    if number["value"] is None:
        return "undefined"
    low, high = ("unbounded" if end is None else f"{end:.3f}" for end in (number["low"], number["high"]))
    return f"{number['value']:.3f} [{low}, {high}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
