"""A study's summary as tables: short ones for the screen, all of it for `summary.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from latentwire.evaluation.eval_report import of_questions, partner_sentence
from latentwire.printing import plain_table
from latentwire.runs.store import Run
from latentwire.studies import seed_tables
from latentwire.studies.curves import points
from latentwire.studies.shape import Summary
from latentwire.studies.spec import Study
from latentwire.studies.stages.training_stage import left_out


@dataclass(frozen=True)
class Section:
    """A table with a title, and notes below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: Sequence[str] = ()


def markdown(study: Study, runs: Mapping[str, Run], summary: Summary) -> str:
    """The text of `summary.md`."""
    lines = [f"# {study.name}", "", f"Model `{study.model}`, split `{study.split}`. {seed_tables.said(study)}", ""]
    for section in [_stages(study, runs, summary), *_sections(study, summary, brief=False)]:
        lines += [f"## {section.title}", ""]
        lines += [_row(section.header), _row(["---"] * len(section.header)), *map(_row, section.rows), ""]
        lines += [line for note in section.notes for line in (note, "")]
    return "\n".join(lines)


def screen(study: Study, summary: Summary) -> RenderableType:
    """What the command `run` prints: scores of top-level tasks, comparisons, effects on `macro`, gates."""
    shown: list[RenderableType] = []
    for section in _sections(study, summary, brief=True):
        table = plain_table(*section.header, title=section.title, overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))
        shown += [Text(), table, *map(Text, section.notes)]
    return Group(*shown)


def _sections(study: Study, summary: Summary, *, brief: bool) -> Iterator[Section]:
    yield _scores(study, summary, brief)
    if summary["derived"].get("pooled"):
        header, rows, note = seed_tables.over_seeds(summary["derived"]["pooled"], _number, brief=brief)
        yield Section("Over seeds", header, rows, [note])
    if (spans := _f1(study, summary, brief)) is not None:
        yield spans
    shares = [number["value"] for of in summary["derived"]["invalid"].values() for number in of.values()]
    if any(shares) or (shares and not brief):
        yield _invalid(summary, brief)
    if summary["derived"]["oracles"]:
        yield _oracles(summary, brief)
    if summary["derived"]["agreement"]:
        yield _agreement(summary)
    if summary["comparisons"]:
        yield _comparisons(summary)
    if summary["derived"]["effects"]:
        yield _effects(summary, brief)
    if accepted := list(_acceptance(summary)):
        yield Section("Acceptance", ["stage", "reader", "gate", "value on validation", "n", ""], accepted)
    if summary["derived"]["gates"]:
        yield _gates(summary)
    if not brief and any(each.latents is not None for each in points(summary)):
        yield _sizes(summary)


def _stages(study: Study, runs: Mapping[str, Run], summary: Summary) -> Section:
    rows = []
    for name, stage in summary["stages"].items():
        record = runs[name].record if name in runs else None
        results = (record.results if record else None) or {}
        ending = (record.error if record else None) or results.get("stopped", "")
        if "steps" in results:
            best = f"{results['best_loss']:.4f} at step {results['best_step']}"
            ending = f"{results['steps']} steps, ended by: {ending}; best evaluation loss {best}{_peak(results)}"
        rows.append([name, study.stages[name].kind, stage["status"], stage["run"] or "", ending])
    notes = [*_repeats(summary), *_same_rows(study, summary), *_untrained(study, summary), *_without(summary)]
    return Section("Stages", ["stage", "kind", "status", "run", ""], rows, notes)


def _peak(results: Mapping[str, Any]) -> str:
    """The peak and the last share of right first tokens; empty for a run of a version that did not record them."""
    if results.get("peak_step", -1) < 0:
        return ""
    peak, final = results["peak_accuracy"], results["final_accuracy"]
    sentence = (
        f"; first tokens right {peak:.3f} at their peak, step {results['peak_step']}, {final:.3f} at the end"
    )
    return f"{sentence}, {peak - final:.3f} less" if final < peak else sentence


def _repeats(summary: Summary) -> Iterator[str]:
    """Stages meant to differ that do not: any difference between them is the noise of a run."""
    for names in summary["derived"]["repeats"]:
        yield f"{', '.join(names)} resolve to the same configuration: repeats of one stage, not an ablation."


def _untrained(study: Study, summary: Summary) -> Iterator[str]:
    """Trainings without any improvement whose best weights, the untrained ones, are read by a later stage."""
    read = {
        need
        for stage in study.stages.values()
        for need in stage.needs()
        if need != stage.start_from or stage.checkpoint == "best"
    }
    for name, results in summary["derived"]["finetunings"].items():
        if results["best_step"] == 0 and name in read:
            yield f"WARNING: {name} was best at step 0: the checkpoint read after it is untrained."


def _without(summary: Summary) -> Iterator[str]:
    for name, results in summary["derived"]["finetunings"].items():
        if lost := left_out(results.get("skipped", {})):
            yield f"{name}: {lost}."


def _same_rows(study: Study, summary: Summary) -> Iterator[str]:
    """Which of the compared finetunings saw the same data."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name in study.effects.after if study.effects else ():
        first = next(iter(study.replicas(name).values()))  # of one seed: the others saw another order
        results = summary["derived"]["finetunings"].get(first)
        seen = study.stages[first].data_seen(results) if results is not None else None
        if seen is not None:
            alike.setdefault(seen, []).append(name)
    for at, names in enumerate(alike.values()):
        same = " saw the same rows, labels, order and number of steps" if len(names) > 1 else ""
        yield f"{'Other rows, steps or seed: ' if at else ''}{', '.join(names)}{same}."


def _scores(study: Study, summary: Summary, brief: bool) -> Section:
    evaluations = {name: wires for name, each in study.stages.items() if (wires := each.evaluated_arms())}
    scored = {name: summary["stages"][name]["metrics"] for name in evaluations}
    tasks = list(dict.fromkeys(task for arms in scored.values() for metrics in arms.values() for task in metrics))
    if brief:
        tasks = [task for task in tasks if "/" not in task]
    rows, counts = [], set()
    for name, arms in scored.items():
        for arm, metrics in arms.items():
            numbers = [next(iter(metrics[task].values())) for task in tasks]
            counts |= {number["n"] for task, number in zip(tasks, numbers, strict=True) if task != "macro"}
            shown = _marked(summary, f"{name}/{arm}").partition("/")[2]
            rows.append([name, shown, evaluations[name][arm], *(_number({**number}) for number in numbers)])
    rows += _floors(summary, tasks)
    n = f"{min(counts):,}" + (f" to {max(counts):,}" if len(counts) > 1 else "") if counts else "no"
    notes = [f"Primary metric with its 95 % interval; {n} examples a task, the same ones in every stage."]
    return Section(
        "Scores", ["stage", "arm", "wire", *tasks], rows, [*notes, *_sticking(summary, tasks), *_cautions(summary)]
    )


def _f1(study: Study, summary: Summary, brief: bool) -> Section | None:
    """Token F1 of the tasks that are answered by a span, beside their exact match in the scores."""
    evaluations = {name: wires for name, each in study.stages.items() if (wires := each.evaluated_arms())}
    numbers = {
        (name, arm, task): metrics["f1"]
        for name in evaluations
        for arm, by_task in summary["stages"][name]["metrics"].items()
        for task, metrics in by_task.items()
        if "f1" in metrics and not (brief and "/" in task)
    }
    if not numbers:
        return None
    tasks = list(dict.fromkeys(task for _, _, task in numbers))
    rows = [
        [
            name,
            _marked(summary, f"{name}/{arm}").partition("/")[2],
            evaluations[name][arm],
            *(_number({**numbers[name, arm, task]}) if (name, arm, task) in numbers else "" for task in tasks),
        ]
        for name, arm in dict.fromkeys((name, arm) for name, arm, _ in numbers)
    ]
    note = "Token F1 of SQuAD v1.1 with its 95 % interval; the primary metric of these tasks is exact match."
    return Section("F1", ["stage", "arm", "wire", *tasks], rows, [note])


def _floors(summary: Summary, tasks: Sequence[str]) -> Iterator[list[str]]:
    """A row for each floor, the score of a reader that guesses.

    The floor of a family is the mean of its tasks, that of `macro` the mean of tasks and families, like scores.
    """
    floors: dict[str, dict[str, float]] = {}
    for evaluation in summary["derived"]["evaluations"].values():
        floors |= evaluation["floors"]  # of the examples, which are the same in every stage
    families: dict[str, list[str]] = {}
    for task in floors:
        families.setdefault(task.split("/")[0], []).append(task)
    for kind in ("chance", "type_floor"):
        known = {task: floor.get(kind) for task, floor in floors.items()}
        known |= {name: _mean([known[task] for task in within]) for name, within in families.items()}
        known["macro"] = _mean([known[name] for name in families])
        shown = [known.get(task) for task in tasks]
        if any(value is not None for value in shown):
            yield ["", kind, "", *("" if value is None else f"{value:.3f}" for value in shown)]


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if one of the values is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _cautions(summary: Summary) -> Iterator[str]:
    """Warnings about the scores: leaking arms, question-aware messages, unstable prompts, examples left out."""
    yield from _repeats(summary)
    evaluations = summary["derived"]["evaluations"]
    if leaking := [f"{name}/{arm}" for name, evaluation in evaluations.items() for arm in evaluation["leaks"]]:
        yield (
            f"LEAKS: in {', '.join(leaking)} scored tokens see themselves; "
            "these numbers measure no reading and must not be compared with others."
        )
    aware = [f"{name}/{arm}" for name, evaluation in evaluations.items() for arm in evaluation["question_aware"]]
    if aware or any(point.latents is not None for point in points(summary)):
        yield of_questions(aware)
    unstable: dict[str, int] = {}
    for evaluation in evaluations.values():
        for task, count in evaluation["unstable"].items():
            unstable[task] = max(count, unstable.get(task, 0))
    if counts := [f"{count:,} of {task}" for task, count in unstable.items() if count]:
        yield f"Unstable prompts, which end in tokens that the answer would change: {', '.join(counts)}."
    skipped = [
        f"{count:,} of {task} in {name}/{arm}"
        for name, evaluation in evaluations.items()
        for arm, of in evaluation["skipped"].items()
        for task, count in of.items()
    ]
    for name, evaluation in evaluations.items():
        for arm, types_of in evaluation.get("partners", {}).items():
            for task, types in types_of.items():
                yield partner_sentence(f"{task} in {name}/{arm}", types)
    if skipped:
        yield f"Left out, since the arm's variant cannot change these examples: {', '.join(skipped)}."


def _sticking(summary: Summary, tasks: Sequence[str]) -> Iterator[str]:
    """How often an answer to an exchanged context keeps the old value, which a low score alone does not show."""
    for name, stage in summary["stages"].items():
        for arm, metrics in stage["metrics"].items():
            for task in tasks:
                if (sticks := metrics.get(task, {}).get("sticks")) is not None:
                    share = f"{_number({**sticks})}, n = {sticks['n']:,}"
                    yield f"{task} over {name}/{arm} sticks to the old answer in {share}."


def _marked(summary: Summary, reading: str) -> str:
    """STAGE/ARM, marked if the arm leaks."""
    stage, _, arm = reading.partition("/")
    leaks = summary["derived"]["evaluations"].get(stage, {}).get("leaks", ())
    return f"{reading} (LEAKS)" if arm in leaks else reading


def _invalid(summary: Summary, brief: bool) -> Section:
    by_reading = summary["derived"]["invalid"]
    tasks = list(dict.fromkeys(task for of in by_reading.values() for task in of))
    rows = [
        [_marked(summary, reading), *(_number(of[task]) if task in of else "" for task in tasks)]
        for reading, of in by_reading.items()
        if not brief or any(number["value"] for number in of.values())
    ]
    note = "The share of answers that could not be read (no `#### N`, or nothing at all); they count as wrong."
    return Section("Invalid answers", ["reading", *tasks], rows, [note])


def _oracles(summary: Summary, brief: bool) -> Section:
    oracles = summary["derived"]["oracles"]
    tasks = [task for task in next(iter(oracles.values()))["metrics"] if not brief or "/" not in task]
    rows = [
        [name, ", ".join(each["of"]), *(_number(next(iter(each["metrics"][task].values()))) for task in tasks)]
        for name, each in oracles.items()
    ]
    note = (
        "The best of its readings, example by example, chosen by the right answer: an upper bound, not a reading."
    )
    return Section("Oracles", ["oracle", "of", *tasks], rows, [note])


def _agreement(summary: Summary) -> Section:
    shares = summary["derived"]["agreement"]
    tasks = list(dict.fromkeys(task for of in shares.values() for task in of))
    rows = [
        [readers, *(_number(of[task]) if task in of else "" for task in tasks)] for readers, of in shares.items()
    ]
    note = "The share of examples that the readers answer alike, right or wrong."
    return Section("Agreement", ["readers", *tasks], rows, [note])


def _comparisons(summary: Summary) -> Section:
    rows = []
    for comparison in summary["comparisons"]:
        more = summary["derived"]["comparisons"][comparison["name"]]
        labels = ["primary" if more["primary"] else "exploratory", *["single seed"] * more["single_seed"]]
        labels += [f"{seeds} seeds"] if (seeds := max(more.get("seeds", [1]))) > 1 else []
        rows.append(
            [
                comparison["name"],
                f"{comparison['task']} {comparison['metric']}",
                f"{_marked(summary, comparison['a'])} minus {_marked(summary, comparison['b'])}",
                f"{comparison['difference']:+.3f} [{comparison['low']:+.3f}, {comparison['high']:+.3f}]",
                f"{comparison['p']:.2g}" if more["p_holm"] is None else f"{more['p_holm']:.2g} (Holm)",
                f"{'' if comparison['resolved'] else 'not '}resolved "
                f"(this sample resolves ≥ {more['resolvable']:.3f})",
                ", ".join(labels),
                f"{more['n']:,}",
            ]
        )
    return Section("Comparisons", ["comparison", "task", "what", "difference", "p", "", "", "n"], rows)


def _effects(summary: Summary, brief: bool) -> Section:
    rows = []
    for effect in summary["derived"]["effects"]:
        if brief and effect["task"] != "macro":
            continue
        above = _number(effect["above_floor"]) + (", at floor" if effect["at_floor"] else "")
        rows.append(
            [
                effect["effect"].replace("_", " "),
                _marked(summary, effect["of"]),
                effect["task"],
                _number(effect["raw"]),
                "at floor" if effect["at_floor"] and effect["effect"] == "retention" else above,
                f"{effect['floor']:.3f} ({effect['floor_is']})",
                f"{effect['n']:,}",
            ]
        )
    notes = [
        "Above floor: retention is (x − floor)/(baseline − floor), differences are shares of baseline − floor. "
        "At floor: the reading is not resolved above its floor. Recovery: the share of the damage that is undone. "
        "Undefined: the divisor is not resolved above 0."
    ]
    return Section("Effects", ["effect", "of", "task", "raw", "above floor", "floor", "n"], rows, notes)


def _acceptance(summary: Summary) -> Iterator[list[str]]:
    """The gates of every trained wire."""
    for name, results in summary["derived"]["finetunings"].items():
        for each in results.get("accept", ()):
            verdict = "held" if each["held"] else "NOT HELD"
            yield [name, each["reader"], each["gate"], _number(each), f"{each['n']:,}", verdict]


def _gates(summary: Summary) -> Section:
    rows = []
    for gate in summary["derived"]["gates"]:
        bound = f"at most {gate['at_most']}" if gate["at_least"] is None else f"at least {gate['at_least']}"
        verdict = {None: "not judged yet", True: "held", False: "NOT HELD"}[gate["held"]]
        if gate["resolved"] is False:
            verdict += " (the interval contains the bound)"
        what = f"{gate['effect'].replace('_', ' ')} of {_marked(summary, gate['of'])} on {gate['task']}"
        floor = " above floor" if gate["above_floor"] else ""
        rows.append([gate["name"], what + floor, bound, _number(gate), verdict])
    return Section("Gates", ["gate", "what", "bound", "value", ""], rows)


def _sizes(summary: Summary) -> Section:
    rows = []
    for point in points(summary):
        ratio = point.facts_per_latent
        rows.append(
            [
                point.arm,
                point.task,
                point.series,
                f"{point.bytes:,.0f}",
                "" if point.latents is None else f"{point.latents:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
                _number({"value": point.value, "low": point.low, "high": point.high}),
            ]
        )
    header = ["arm", "task", "series", "bytes a context", "latents", "facts a latent", "primary metric"]
    return Section(
        "Sizes", header, rows, ["Means of the first contexts; `latentwire report` draws them as curves."]
    )


def _number(number: Mapping[str, Any]) -> str:
    if number["value"] is None:
        return "undefined"
    low, high = ("unbounded" if end is None else f"{end:.3f}" for end in (number["low"], number["high"]))
    return f"{number['value']:.3f} [{low}, {high}]"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
