"""An outcome: one example under one arm. All statistics are computed from outcomes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from latentwire.errors import UserError
from latentwire.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One example under one arm: the answer and its scores.

    Attributes:
        task: the task's name.
        arm: the arm's label.
        id: the example's.
        group: what the example shares with others, such as a passage; statistics take groups as independent.
        prediction: the answer, generated or chosen.
        metrics: scores by name; those of `evaluation.metrics.METRICS` lie in [0, 1]. The first is the primary one,
            and the file keeps the order.
        error: the class of a wrong answer, None where it is right or has no class.
        tokens: how many columns the reader read before its answer.

    Example:
        >>> import latentwire as lw
        >>> results = lw.evaluate("embedded:heron", "one_hop", "text", limit=4)
        >>> results.outcomes[0].arm
        'text'
    """

    task: str
    arm: str
    id: str
    group: str
    prediction: str
    metrics: dict[str, float]
    error: str | None = None
    tokens: int = 0

    def to_json(self) -> str:
        """One line of JSON without its line break.

        Raises:
            ValueError: a metric is not finite.
        """
        return json.dumps(vars(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Outcome:
        """The outcome that `to_json` wrote, equal in every field.

        Raises:
            ValueError: `line` is not JSON or has other fields than an outcome.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict) or fields.keys() != cls.__dataclass_fields__.keys():
            names = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"expected an outcome with the fields {names}, found {line[:80]!r}")
        return cls(**fields)


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write `outcomes` to `path`, one line each. A kill leaves the old file or the new one, whole."""
    write_atomically(path, "".join(outcome.to_json() + "\n" for outcome in outcomes))


def read_outcomes(path: Path) -> list[Outcome]:
    """The outcomes in `path`, in order.

    Example:
        >>> [outcome.prediction for outcome in read_outcomes(Path("run/outcomes.jsonl"))]

    Raises:
        UserError: a line cannot be read; it is named.
    """
    outcomes = []
    # newline="\n": a prediction may hold a line separator of Unicode, which is not a line's end here.
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                outcomes.append(Outcome.from_json(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}.") from error
    return outcomes
