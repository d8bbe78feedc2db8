"""The study's comparisons as rows: the difference on a common scale, the verdict, and the examples behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from latentwire.evaluation.statistics import members, shared
from latentwire.report.gathered import Gathered
from latentwire.report.sample_data import is_right


def comparison_rows(study: Gathered) -> list[dict[str, Any]]:
    """Each comparison with `more` (what the summary adds), `leaks`, its place on the `scale`, and `links`.

    `links` is None where a side has no outcomes of its own (an oracle); else the numbers of examples that a gets
    wrong and b right (`broke`) and the other way round (`mended`), each with the address that shows them.
    """
    compared = study.summary["comparisons"]
    ends = [end for each in compared for end in (each["low"], each["high"]) if _finite(end)]
    scale = (min([*ends, -0.01]), max([*ends, 0.01]))
    return [_row(study, dict(each), scale) for each in compared]


def _row(study: Gathered, each: dict[str, Any], scale: Sequence[float]) -> dict[str, Any]:
    sides = [study.readings.get(each[side]) for side in ("a", "b")]
    low, high = scale
    span = high - low
    each["more"] = study.derived.get("comparisons", {}).get(each["name"], {})
    each["leaks"] = any(side is not None and side.leaks for side in sides)
    each["scale"] = {
        key: round(100 * (value - low) / span, 2)
        for key, value in (
            ("zero", 0.0),
            ("value", each["difference"]),
            ("low", each["low"]),
            ("high", each["high"]),
        )
        if _finite(value)
    }
    each["links"] = None
    a, b = sides
    if a is not None and b is not None:
        pairs = list(zip(*shared([members(side.outcomes, each["task"]) for side in (a, b)]), strict=True))
        right = {(o.task, o.id): is_right(o) for o, _ in pairs}, {(o.task, o.id): is_right(o) for _, o in pairs}
        broke = sum(right[1][key] and not right[0][key] for key in right[0])
        mended = sum(right[0][key] and not right[1][key] for key in right[0])
        each["links"] = [
            {"show": "broke", "count": broke, "to": _address(study, each, "broke")},
            {"show": "mended", "count": mended, "to": _address(study, each, "mended")},
        ]
    return each


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _address(study: Gathered, each: dict[str, Any], show: str) -> str:
    task = {} if each["task"] == "macro" else {"task": each["task"]}
    return "#samples?" + urlencode({"study": study.label, "a": each["a"], "b": each["b"], "show": show, **task})
