"""Numbers, readings and tasks as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"


def plain(value: float | None, digits: int = 3) -> str:
    """A number with three decimals, and never `-0.000`; an en dash for none."""
    if value is None:
        return "–"
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """A difference, with its sign."""
    if value is None:
        return "–"
    rounded = round(value, digits) + 0.0
    return plain(rounded, digits) if rounded <= 0 else f"+{rounded:.{digits}f}"


def interval(low: float | None, high: float | None, *, difference: bool = False) -> str:
    """A 95 % interval in brackets; an end that the sample does not bound is an infinity."""
    written = signed if difference else plain
    start = f"{MINUS}∞" if low is None or math.isinf(low) else written(low)
    end = "∞" if high is None or math.isinf(high) else written(high)
    return f"[{start}, {end}]"


def estimated(number: Mapping[str, Any]) -> str:
    """`0.374 [0.331, 0.418]`, or `undefined`."""
    if number["value"] is None:
        return "undefined"
    return f"{plain(number['value'])} {interval(number['low'], number['high'])}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 stage`, `2,000 stages`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def duration(seconds: float | None) -> str:
    """`45 s`, `2 min 5 s`; empty for none."""
    from latentwire.runs.log import duration as written

    return "" if seconds is None else written(seconds)
