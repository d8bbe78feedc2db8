"""Acceptance gates: a metric's whole interval, not only its value, must clear a bound, on enough examples."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.errors import UserError, one_of
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import Estimate, estimate

EXAMPLES = 500
"""The fewest examples of a gate: the peak over many small batches is noise."""
_WRITTEN = re.compile(r"\s*([a-z][a-z0-9_]*)\s*(>=|<=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Gate:
    """A bound on a metric, written `METRIC >= BOUND` or `METRIC <= BOUND`.

    Attributes:
        metric: its name, such as `first_token_top1`.
        sign: `>=` or `<=`.
        bound: in the metric's unit.
    """

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """A gate from its text.

        Example:
            >>> Gate.parse("first_token_top1 >= 0.12").bound
            0.12

        Raises:
            UserError: it is written otherwise.
        """
        match = _WRITTEN.fullmatch(text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise UserError(f"gate: found {text!r}, expected METRIC >= NUMBER or METRIC <= NUMBER.")
        return cls(match[1], match[2], bound)

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.bound:g}"


@dataclass(frozen=True)
class Held:
    """A gate, the estimate that it was held against, and whether it held."""

    gate: Gate
    found: Estimate
    held: bool

    def __str__(self) -> str:
        bound = "lower" if self.gate.sign == ">=" else "upper"
        return f"{self.gate}: {'held' if self.held else 'NOT HELD'} ({self.found}; its {bound} bound counts)"


def hold(gate: Gate, outcomes: Sequence[Outcome], examples: int = EXAMPLES) -> Held:
    """Hold one arm's outcomes against a gate: the interval's lower bound for >=, its upper bound for <=.

    Args:
        gate: the gate.
        outcomes: of one arm.
        examples: the fewest that count.

    Example:
        >>> hold(Gate.parse("exact_match >= 0.3"), outcomes).held

    Raises:
        UserError: fewer than `examples` outcomes, or they lack the metric.
    """
    if len(outcomes) < examples:
        raise UserError(f"gate: {gate}: found {len(outcomes):,} examples, expected at least {examples:,}.")
    known = [name for name in outcomes[0].metrics if all(name in o.metrics for o in outcomes)]
    if gate.metric not in known:
        raise UserError(f"gate: found {gate.metric!r}, expected {one_of(gate.metric, known)}.")
    found = estimate(outcomes, gate.metric)
    return Held(gate, found, found.low >= gate.bound if gate.sign == ">=" else found.high <= gate.bound)
