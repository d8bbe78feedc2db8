"""What a study's numbers show and do not show, in plain sentences that are made by rules.

The rules: a difference is claimed only where its comparison is resolved; an interval that includes zero is said to
show nothing, and is called equal only inside ±0.05; a reading that is not above its floor is said to be
indistinguishable from guessing; a claim about one training seed says so; whatever leaks is claimed nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latentwire.evaluation.statistics import EQUAL
from latentwire.report.gathered import Gathered
from latentwire.report.score_rows import highest_floor
from latentwire.report.wording import counted, interval, listed, plain, signed


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the comparison whose examples it is about, if any."""

    text: str
    comparison: str | None = None


@dataclass(frozen=True)
class PlainWords:
    """What the numbers say.

    Attributes:
        about: What was read, by what, and how far the study is.
        shows: What is resolved.
        open: What is not shown.
        limits: What no number here can show.
    """

    about: str
    shows: list[Sentence]
    open: list[Sentence]
    limits: list[str]


def evidence(study: Gathered) -> PlainWords:
    """The evidence of a study."""
    shows: list[Sentence] = []
    undecided: list[Sentence] = []
    for sentence, resolved in _statements(study):
        (shows if resolved else undecided).append(sentence)
    return PlainWords(_about(study), shows, undecided, list(_limits(study)))


def _statements(study: Gathered) -> Iterator[tuple[Sentence, bool]]:
    yield from _comparisons(study)
    yield from _effects(study)
    yield from _at_floor(study)
    yield from _gates(study)


def _about(study: Gathered) -> str:
    stages = study.summary["stages"].values()
    done = sum(stage["status"] == "done" for stage in stages)
    model, tasks = study.outline.get("model"), study.outline.get("tasks", [])
    examples = {(o.task, o.id) for reading in study.readings.values() for o in reading.outcomes}
    read = f"{counted(len(examples), 'example')} of {counted(len(tasks), 'task')}" if examples and tasks else ""
    reader = f"{study.label} asks {model}" if model else study.label
    what = f"{reader} {read}" if model and read else f"{reader} rests on {read}" if read else reader
    split = f" ({study.outline['split']} split)" if study.outline.get("split") and read else ""
    end = f"all {done} stages are done" if done == len(stages) else f"{done} of {len(stages)} stages are done"
    return f"{what}{split}; {end}."


def _comparisons(study: Gathered) -> Iterator[tuple[Sentence, bool]]:
    ordered = sorted(study.summary["comparisons"], key=lambda each: not _more(study, each).get("primary"))
    for each in ordered:
        more = _more(study, each)
        leaking = [name for name in (each["a"], each["b"]) if _leaks(study, name)]
        numbers = f"{signed(each['difference'])} {interval(each['low'], each['high'], difference=True)}"
        sized = f"{numbers}, n = {more['n']:,}" if "n" in more else numbers
        kind = "planned" if more.get("primary") else "exploratory"
        if leaking:
            text = f"{_name(each)} measures no reading: tokens of {listed(leaking)} see themselves ({numbers})."
            yield Sentence(text), False
        elif each["resolved"]:
            direction = "higher" if each["difference"] > 0 else "lower"
            seed = "; single training seed" if more.get("single_seed") else ""
            text = (
                f"{_name(each)}: {each['a']} scores {plain(abs(each['difference']))} {direction} than {each['b']} "
                f"on {each['task']} ({sized}; {kind}{seed})."
            )
            yield Sentence(text, each["name"]), True
        else:
            yield Sentence(_undecided(each, more, sized, kind), each["name"]), False


def _undecided(each: Mapping[str, Any], more: Mapping[str, Any], sized: str, kind: str) -> str:
    if each["low"] is not None and each["high"] is not None and max(abs(each["low"]), abs(each["high"])) < EQUAL:
        return (
            f"{_name(each)}: {each['a']} and {each['b']} differ by less than {EQUAL} on {each['task']} "
            f"({sized}; {kind}): the same at that margin."
        )
    resolvable = more.get("resolvable")
    limit = f" This sample resolves differences of {plain(resolvable)} or more." if resolvable else ""
    excludes = each["low"] > 0 or each["high"] < 0
    why = "not resolved once all planned comparisons are counted" if excludes else "the interval includes zero"
    return (
        f"{_name(each)}: no difference between {each['a']} and {each['b']} on {each['task']} is shown, and no "
        f"equality either ({sized}; {kind}; {why}).{limit}"
    )


def _effects(study: Gathered) -> Iterator[tuple[Sentence, bool]]:
    """Retention and recovery on the study's widest task, above the floor."""
    effects = study.derived.get("effects", [])
    tasks = {each["task"] for each in effects}
    for each in effects:
        if each["task"] != "macro" and ("macro" in tasks or len(tasks) > 1):
            continue
        number, floor = each["above_floor"], f"floor {plain(each['floor'])}: {_highest(each['floor_is'])}"
        if _leaks(study, each["of"]):
            continue
        if each["effect"] == "retention":
            if each["at_floor"]:
                continue  # said once, with the readings at their floor
            if number["value"] is None:
                text = (
                    f"What {each['of']} keeps of the baseline is undefined: the baseline is not above its floor."
                )
                yield Sentence(text), False
                continue
            text = (
                f"Above the floor, {each['of']} keeps {plain(number['value'])} of the baseline's score on "
                f"{each['task']} ({interval(number['low'], number['high'])}; {floor})."
            )
            yield Sentence(text), True
        elif each["effect"] == "recovery":
            if number["value"] is None:
                yield (
                    Sentence(f"Recovery of {each['of']} is undefined: there is no resolved damage to undo."),
                    False,
                )
            elif number["low"] is None or number["low"] <= 0:
                text = (
                    f"No recovery by {each['of']} is shown on {each['task']}: {signed(number['value'])} "
                    f"{interval(number['low'], number['high'], difference=True)} of the damage above the floor."
                )
                yield Sentence(text), False
            else:
                text = (
                    f"{each['of']} undoes {plain(number['value'])} of the damage on {each['task']} "
                    f"({interval(number['low'], number['high'])}; {floor})."
                )
                yield Sentence(text), True


def _at_floor(study: Gathered) -> Iterator[tuple[Sentence, bool]]:
    """Readings that cannot be told from a reader that guesses."""
    judged = {
        each["of"]: f"{each['of']} ({each['task']}, floor {plain(each['floor'])}: {each['floor_is']})"
        for each in study.derived.get("effects", [])
        if each["at_floor"] and each["task"] == "macro"
    }
    known = {each["of"] for each in study.derived.get("effects", [])}
    for reading in study.readings.values():
        metrics = study.summary["stages"][reading.stage]["metrics"].get(reading.arm, {})
        task = "macro" if "macro" in metrics else next(iter(metrics), None)
        if reading.blind or reading.leaks or task is None or reading.name in known:
            continue
        number, (floor, named) = next(iter(metrics[task].values())), highest_floor(study, task)
        if number["low"] is not None and number["low"] <= floor and "sticks" not in metrics[task]:
            judged[reading.name] = f"{reading.name} ({task}, floor {plain(floor)}: {named})"
    if judged:
        text = (
            f"Not shown to be above the floor, and so perhaps guessing: {listed(list(judged.values()))}. "
            "A share of the baseline means little there."
        )
        yield Sentence(text), False


def _gates(study: Gathered) -> Iterator[tuple[Sentence, bool]]:
    for gate in study.derived.get("gates", []):
        bound = f"at most {gate['at_most']}" if gate["at_least"] is None else f"at least {gate['at_least']}"
        what = f"{gate['effect'].replace('_', ' ')} of {gate['of']} on {gate['task']}"
        if gate["held"] is None:
            yield Sentence(f"The gate “{gate['name']}” has not been judged yet."), False
            continue
        number = f"{plain(gate['value'])} {interval(gate['low'], gate['high'])}"
        if gate["held"]:
            yield Sentence(f"The gate “{gate['name']}” held: {what} is {bound} ({number})."), True
        else:
            verdict = "did not hold" if gate["resolved"] else "is not decided: the interval contains its bound"
            yield Sentence(f"The gate “{gate['name']}” {verdict}: {what}, {bound} ({number})."), False


def _limits(study: Gathered) -> Iterator[str]:
    comparisons = study.summary["comparisons"]
    if not comparisons:
        yield "The study names no comparisons: intervals of single arms say nothing about differences."
    elif not any(_more(study, each).get("primary") for each in comparisons):
        yield "No comparison was planned as a primary one: all of them are exploratory."
    single = [each["name"] for each in comparisons if _more(study, each).get("single_seed")]
    pooled = any(max(_more(study, each).get("seeds") or [1]) > 1 for each in comparisons)
    if single:
        which = (
            f"Of a single training seed: {listed(single)}" if pooled else "Every trained arm is of a single seed"
        )
        yield (
            f"{which}: the intervals cover the choice of examples, not that of the seed, and another training may "
            "end elsewhere."
        )
    model = study.outline.get("model") or ""
    if model.startswith("embedded:"):
        yield (
            f"{model} has a few million parameters and knows one made-up world: it shows whether something "
            "happens, not how much of it happens in a real model."
        )
    if open_ := [name for name, stage in study.summary["stages"].items() if stage["status"] != "done"]:
        yield f"Not done: {listed(open_)}; what depends on them is not said here."
    for names in study.derived.get("repeats", []):
        yield f"{listed(names)} resolve to the same configuration: they are repeats, and no ablation."


def _highest(floors: str) -> str:
    """What a floor is made of: one, or the highest of several, task by task."""
    return f"the highest of {floors} in each task" if "," in floors else floors


def _name(each: Mapping[str, Any]) -> str:
    return str(each["name"][:1].upper() + each["name"][1:])


def _more(study: Gathered, each: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = study.derived.get("comparisons", {}).get(each["name"], {})
    return found


def _leaks(study: Gathered, reading: str) -> bool:
    stage, _, arm = reading.partition("/")
    return arm in study.evaluations().get(stage, {}).get("leaks", ())
