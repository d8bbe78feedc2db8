"""Cells of tables on the pages of results, as numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest


def numbers(cell: str) -> list[float]:
    """A value and its bounds, such as `0.544 [0.517, 0.570]`."""
    return [float(number) for number in re.findall(r"[-+]?[0-9.]+", cell)]


def near(value: float | None, low: float | None, high: float | None) -> list[Any]:
    """What a cell may say: how bounds are computed may change a last digit."""
    return [pytest.approx(value, abs=0.0006), pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006)]
