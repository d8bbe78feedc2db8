"""Hours and dollars on every offer: before a run, and during it with what moving elsewhere would cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latentwire.estimates.offers import CASES, Case, Cases, Offer, Offers
from latentwire.estimates.run_pace import RunPace
from latentwire.estimates.workload import GIB, Workload


@dataclass(frozen=True)
class Forecast:
    """What an offer takes.

    Attributes:
        offer: its name.
        fits: whether all stages fit into one GPU.
        memory_gib: the most that a stage needs there.
        hours, dollars: by case; None for dollars where no price is known.
        moves: whether the run would have to move there.
    """

    offer: str
    fits: bool
    memory_gib: float
    hours: dict[Case, float]
    dollars: dict[Case, float] | None
    moves: bool = False


def before(workloads: Mapping[str, Workload], offers: Offers) -> list[Forecast]:
    """All stages one after another, on each offer; the cheapest that fits first."""
    found = []
    memory = max(each.memory for each in workloads.values()) / GIB
    for name, offer in offers.offers.items():
        seconds = sum(each.seconds(offer, offers) for each in workloads.values())
        fits = all(each.fits(offer) for each in workloads.values())
        hours = spread(offer.setup_minutes / 60, seconds / 3600, offers.before)
        found.append(Forecast(name, fits, memory, hours, dollars(hours, offer)))
    return sorted(found, key=_price)


def during(pace: RunPace, workload: Workload, offers: Offers) -> list[Forecast]:
    """The rest of a running stage where it is, and after a move to each other offer.

    Moving takes the machine's setup and start, the snapshot's way there, and the steps since it once more.
    The pace elsewhere follows from the pace here by the ratio of the base estimates, or by the offer's `speed`.
    """
    here = offers.where(pace.gpu)
    now = None if here is None else offers.offers[here]
    left = pace.seconds_left / 3600
    memory = pace.memory_gib if pace.memory_gib is not None and pace.gpu else workload.memory / GIB
    hours = spread(0.0, left, offers.during)
    found = [Forecast(here or "where it runs", True, memory, hours, None if now is None else dollars(hours, now))]
    for name, offer in offers.offers.items():
        if name == here or (now is None and offer.speed is None):
            continue
        again = pace.since_snapshot * pace.seconds_each / 3600
        factor = 1 / offer.speed if offer.speed else _slower(workload, offer, now, offers)
        moved = pace.snapshot_bytes / (1e9 * offer.network_gbs) / 3600
        fixed = offer.setup_minutes / 60 + offer.start_minutes / 60 + moved
        hours = spread(fixed, (left + again) * factor, offers.during)
        fits = memory * GIB <= 0.9 * GIB * offer.memory_gib
        found.append(Forecast(name, fits, memory, hours, dollars(hours, offer), moves=True))
    return [found[0], *sorted(found[1:], key=_price)]


def _slower(workload: Workload, offer: Offer, now: Offer | None, offers: Offers) -> float:
    """How much longer the stage takes on an offer than where it runs, both without their start."""
    assert now is not None
    there, here = (workload.seconds(each, offers) - workload.start_seconds(offers) for each in (offer, now))
    return there / here


def spread(fixed: float, work: float, cases: Cases) -> dict[Case, float]:
    """Hours by case: the fixed part is the same in all."""
    return {case: fixed + work * cases.at(case) for case in CASES}


def dollars(hours: Mapping[Case, float], offer: Offer) -> dict[Case, float]:
    """What the hours cost."""
    return {case: offer.dollars_per_hour * each for case, each in hours.items()}


def _price(forecast: Forecast) -> tuple[bool, float]:
    return not forecast.fits, forecast.dollars["base"] if forecast.dollars else 0.0
