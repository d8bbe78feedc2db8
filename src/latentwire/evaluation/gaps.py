"""How much of what a context is worth crosses a wire: retention (raw) and gap closed (above the floor)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentwire.evaluation.combinations import Combination, PairedArms
from latentwire.evaluation.outcomes import Outcome
from latentwire.evaluation.statistics import members, shared
from latentwire.evaluation.summarize import by_arm, rows

TEXT, NONE, FLOOR = "text", "none", "floor"


@dataclass(frozen=True)
class Gap:
    """One arm on one task, by the primary metric.

    Attributes:
        retention: arm / text.
        closed: (arm − floor) / (text − floor), undefined where text is not resolved above the floor.
        floor: the highest of `none`, `type_floor` and `chance`, task by task.
        floor_is: which of them it is.
        n: how many examples the arm shares with `text` and `none`.
    """

    retention: Combination
    closed: Combination
    floor: float
    floor_is: str
    n: int


def gaps(outcomes: Sequence[Outcome], floors: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Gap]]:
    """Gaps by arm and task, families and `macro` included, for arms whose reader has `text` and `none` among the
    arms.

    Arms are compared on the examples that they share with both; where there are none, there is no gap. A floor
    that is an arm brings its own uncertainty, one that is a number brings none. Counterfactual arms have no gap:
    other answers are expected of them than of the text.

    Args:
        outcomes: of all arms.
        floors: by task, the floors that are numbers (`Evaluation.floors`).

    Example:
        >>> gaps(result.outcomes, result.floors)["nth,ratio=4"]["squad"].closed.value
    """
    arms = by_arm(outcomes)
    closed: dict[str, dict[str, Gap]] = {}
    for name, own in arms.items():
        _, at, reader = name.rpartition("@")
        text, none = (f"{arm}@{reader}" if at else arm for arm in (TEXT, NONE))
        if name in (text, none) or not {text, none} <= arms.keys() or any("sticks" in o.metrics for o in own):
            continue
        three = {TEXT: arms[text], NONE: arms[none], name: own}
        paired = dict(zip(three, shared(list(three.values())), strict=True))
        closed[name] = {
            task: _gap(name, {arm: members(each, task) for arm, each in paired.items()}, floors)
            for task in rows(o.task for o in paired[name])
        }
    return closed


def _gap(name: str, part: Mapping[str, Sequence[Outcome]], floors: Mapping[str, Mapping[str, float]]) -> Gap:
    arms = PairedArms.of(part)
    picks: list[str | float] = []
    called = []
    for task, blind in zip(sorted({o.task for o in part[name]}), arms.means(NONE), strict=True):
        best = max((value, kind) for kind, value in {NONE: float(blind), **floors.get(task, {})}.items())
        picks.append(NONE if best[1] == NONE else best[0])
        called.append(best[1])
    arms = arms.with_mixed(FLOOR, picks)
    return Gap(
        retention=arms.ratio({name: 1}, {TEXT: 1}),
        closed=arms.ratio({name: 1, FLOOR: -1}, {TEXT: 1, FLOOR: -1}),
        floor=arms.value(FLOOR),
        floor_is=", ".join(dict.fromkeys(called)),
        n=len(part[name]),
    )
