"""The sample browser's data: every example with every reading's answer, as columns and one list of texts.

All examples are kept if they fit. Otherwise those on which readings disagree come first, then the others, tasks in
turn; the page says how many it holds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from latentwire.evaluation.outcomes import Outcome
from latentwire.report.embedding import embedded
from latentwire.report.gathered import ArmReading, Gathered

Key = tuple[str, str, int]
"""An example: its task, its id, and what tells apart examples of one id with other texts."""


@dataclass
class _Texts:
    """Each text once, by its number."""

    all: list[str] = field(default_factory=list)
    _numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        if text not in self._numbers:
            self._numbers[text] = len(self.all)
            self.all.append(text)
        return self._numbers[text]


@dataclass(frozen=True)
class _Shown:
    """A reading, with its outcomes and prompts by example."""

    study: Gathered
    reading: ArmReading
    outcomes: dict[Key, Outcome]
    prompts: dict[Key, dict[str, Any]]


def is_right(outcome: Outcome) -> bool:
    """Whether an answer counts as right: its primary metric is at least one half."""
    return next(iter(outcome.metrics.values())) >= 0.5


def sample_data(studies: Sequence[Gathered], budget: int) -> dict[str, Any]:
    """The data of the browser, at most `budget` bytes in the page."""
    examples, shown = _collected(studies)
    ranked, disagreeing = _ranked(shown)
    count = len(ranked)
    while True:
        data = _columns(ranked[:count], examples, shown, several=len(studies) > 1)
        size = len(embedded(data).encode())
        if size <= budget or count == 0:
            break
        count = min(count - 1, int(count * 0.97 * budget / size))
    data["sampled"] = {"kept": count, "of": len(ranked), "disagreements": disagreeing}
    return data


def _collected(studies: Sequence[Gathered]) -> tuple[dict[Key, dict[str, Any]], list[_Shown]]:
    texts: dict[tuple[str, str], list[Any]] = defaultdict(list)
    examples: dict[Key, dict[str, Any]] = {}
    shown = []
    for study in studies:
        keys: dict[tuple[str, str], Key] = {}
        prompts: dict[str, dict[Key, dict[str, Any]]] = defaultdict(dict)
        for stage, line in study.prompts():
            name, content = (line["task"], line["id"]), (line["context"], line["question"], line["gold"])
            if content not in texts[name]:
                texts[name].append(content)
            key = keys[name] = (*name, texts[name].index(content))
            examples[key] = line
            for arm, prompt in line["arms"].items():
                prompts[f"{stage}/{arm}"][key] = prompt
        for reading in study.readings.values():
            outcomes = {keys.get((o.task, o.id), (o.task, o.id, -1)): o for o in reading.outcomes}
            shown.append(_Shown(study, reading, outcomes, prompts[reading.name]))
    return examples, shown


def _ranked(shown: Sequence[_Shown]) -> tuple[list[Key], int]:
    """All examples, those on which readings disagree first; and how many these are."""
    right: dict[Key, set[bool]] = defaultdict(set)
    place: dict[Key, int] = {}
    seen: dict[str, int] = defaultdict(int)
    for each in shown:
        for key, outcome in each.outcomes.items():
            if key not in place:
                place[key] = seen[key[0]]
                seen[key[0]] += 1
            if not each.reading.blind:
                right[key].add(is_right(outcome))
    # Sorting is stable: examples of one rank keep the order of their tasks.
    ranked = sorted(place, key=lambda key: (len(right[key]) < 2, place[key]))
    return ranked, sum(len(right[key]) > 1 for key in place)


def _columns(
    kept: Iterable[Key], examples: dict[Key, dict[str, Any]], shown: Sequence[_Shown], *, several: bool
) -> dict[str, Any]:
    chosen = set(kept)
    in_order = [key for key in dict.fromkeys(key for each in shown for key in each.outcomes) if key in chosen]
    numbers = {key: at for at, key in enumerate(in_order)}
    texts, shapes = _Texts(), _Texts()
    tasks = list(dict.fromkeys(key[0] for key in in_order))
    table: dict[str, list[Any]] = {"task": [], "id": [], "context": [], "question": [], "gold": [], "choices": []}
    for key in in_order:
        line = examples.get(key, {})
        table["task"].append(tasks.index(key[0]))
        table["id"].append(key[1])
        table["context"].append(texts.number(line.get("context", "")))
        table["question"].append(texts.number(line.get("question", "")))
        table["gold"].append([texts.number(text) for text in line.get("gold", ())])
        table["choices"].append([texts.number(text) for text in line.get("choices", ())])
    readings = [_reading(each, numbers, chosen, texts, shapes, several) for each in shown]
    return {
        "tasks": tasks,
        "examples": table,
        "readings": readings,
        "texts": texts.all,
        "shapes": [json.loads(shape) for shape in shapes.all],
    }


def _reading(
    each: _Shown, numbers: dict[Key, int], chosen: Collection[Key], texts: _Texts, shapes: _Texts, several: bool
) -> dict[str, Any]:
    reading = each.reading
    rows = [(key, outcome) for key, outcome in each.outcomes.items() if key in chosen]
    metrics = list(dict.fromkeys(name for _, outcome in rows for name in outcome.metrics))
    found: dict[str, Any] = {
        "name": f"{each.study.label}: {reading.name}" if several else reading.name,
        "study": each.study.label,
        "reading": reading.name,
        "wire": reading.wire,
        "blind": reading.blind,
        "leaks": reading.leaks,
        "example": _joined([numbers[key] for key, _ in rows]),
        "right": _joined([float(is_right(outcome)) for _, outcome in rows]),
        "said": _joined([texts.number(outcome.prediction) for _, outcome in rows]),
        "error": _joined([None if outcome.error is None else texts.number(outcome.error) for _, outcome in rows]),
        "tokens": _joined([outcome.tokens for _, outcome in rows]),
        "metrics": {name: _joined([outcome.metrics.get(name) for _, outcome in rows]) for name in metrics},
        "gold": {},
    }
    kinds: list[float | None] = []
    counted: list[Any] = []
    for at, (key, outcome) in enumerate(rows):
        prompt = each.prompts.get(key)
        if prompt is None:
            kinds.append(None)
            counted.append(0)
            continue
        shape = {name: value for name, value in prompt.items() if name in ("layers", "leaky")}
        shape["pieces"] = [[text, block] for text, block, _ in prompt["pieces"]]
        counts = [prompt.get("memory", 0), *(count for _, _, count in prompt["pieces"])]
        kinds.append(shapes.number(json.dumps(shape, ensure_ascii=False, sort_keys=True)))
        counted.append(0 if counts == [0, outcome.tokens] else counts)
        if "gold" in prompt:
            found["gold"][at] = [texts.number(text) for text in prompt["gold"]]
    return {**found, "shape": _joined(kinds), "counts": counted if any(counted) else 0}


def _joined(numbers: Sequence[float | None]) -> str:
    """A column as one text, the shortest of: `=N` for N, N + 1, …; `01-1` for zeros, ones and gaps; `5,,7`."""
    if numbers and None not in numbers and list(numbers) == list(range(int(numbers[0] or 0), len(numbers))):
        return f"={int(numbers[0] or 0)}"
    if all(number is None or (number in (0, 1) and isinstance(number, float)) for number in numbers):
        return "b" + "".join("-" if number is None else str(int(number)) for number in numbers)
    return ",".join("" if number is None else _short(number) for number in numbers)


def _short(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.3g}" if abs(number) >= 0.001 else f"{number:.1g}"
