"""What adapts during a training: how many answer tokens count, and the weights of objectives with `auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latentwire.training.objectives import Term

SMOOTHING = 0.95
"""Share of the old value that a running mean keeps."""
SCALES = (1e-3, 1e3)
"""Bounds of an automatic scale: a term that has converged has hardly any gradient left."""


class Adapting:
    """Running numbers that change what is trained on; every snapshot holds them, so a resumed run adapts alike.

    Attributes:
        accuracy: Running mean of first answer tokens predicted right; None before the first step.
        best: Its maximum.
        scales: Factor of each objective with `auto`, by kind.
        skipped: How often an objective did not fit into memory, by kind.
    """

    def __init__(self, objectives: Sequence[Term]) -> None:
        self._main = objectives[0].kind
        self._auto = [each.kind for each in objectives if each.auto]
        self.accuracy: float | None = None
        self.best = 0.0
        self.scales: dict[str, float] = {}
        self.skipped: dict[str, int] = {}

    def scale(self, kind: str) -> float:
        return self.scales.get(kind, 1.0)

    @property
    def wants_norms(self) -> bool:
        """Whether the objectives' gradient norms are needed, logged or not."""
        return bool(self._auto)

    def stepped(self, accuracy: float | None, skipped: Mapping[str, int]) -> None:
        """Take a step into account.

        Args:
            accuracy: First answer tokens predicted right, 0 to 1; None if the readers read the text.
            skipped: By kind, how often it did not fit into memory, in all processes.
        """
        if accuracy is not None:
            before = accuracy if self.accuracy is None else self.accuracy
            self.accuracy = SMOOTHING * before + (1 - SMOOTHING) * accuracy
            self.best = max(self.best, self.accuracy)
        for kind, count in skipped.items():
            if count:
                self.skipped[kind] = self.skipped.get(kind, 0) + count

    def measured(self, norms: Mapping[str, float]) -> None:
        """Take the objectives' gradient norms into account, which are means over all processes."""
        main = norms.get(self._main, 0.0)
        for kind in self._auto:
            own = norms.get(kind, 0.0)
            if not (main > 0 and own > 0 and main < float("inf") and own < float("inf")):
                continue
            now = min(SCALES[1], max(SCALES[0], main / own))
            before = self.scales.get(kind, now)
            self.scales[kind] = SMOOTHING * before + (1 - SMOOTHING) * now

    def state(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "best": self.best,
            "scales": dict(self.scales),
            "skipped": dict(self.skipped),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.accuracy, self.best = state["accuracy"], state["best"]
        self.scales, self.skipped = dict(state["scales"]), dict(state["skipped"])
