"""When a training ends before its last step, and which of its checkpoints is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from latentwire.training.loop_config import Stopping

SMOOTHED = 20
"""Steps whose mean train loss is compared with the first one's."""


class Leak(RuntimeError):
    """Training would read, or seems to read, its own labels."""


class Best(TypedDict):
    """The best value of a metric so far, and the step it was measured at."""

    value: float
    step: int


@dataclass
class Judge:
    """Keeps what the criteria need; its fields are saved with every snapshot, so a resumed run judges alike.

    Attributes:
        settings: The criteria.
        bests: By metric, its best value and the step of it.
        plateau_loss: The evaluation loss that must be improved by `min_delta`.
        stale: Evaluations since it was.
        rising: Evaluations in a row at which the loss rose.
        last_loss: The latest evaluation loss.
        peak_accuracy: The highest share of first answer tokens predicted right, that after `peak_step` steps.
        last_accuracy: The latest one.
        first_loss: The train loss at step 0.
        recent: The train losses of the last `SMOOTHED` steps.
    """

    settings: Stopping
    bests: dict[str, Best] = field(default_factory=dict)
    plateau_loss: float = float("inf")
    stale: int = 0
    rising: int = 0
    last_loss: float = float("inf")
    peak_accuracy: float = -1.0
    peak_step: int = -1
    last_accuracy: float = -1.0
    first_loss: float | None = None
    recent: list[float] = field(default_factory=list)

    def trained(self, step: int, loss: float) -> str | None:
        """Take a step's train loss (nats a token) into account; returns why to stop, or None.

        Raises:
            Leak: The loss fell implausibly fast.
        """
        if self.first_loss is None:
            self.first_loss = loss
        self.recent = [*self.recent, loss][-SMOOTHED:]
        limits = self.settings
        collapsed = limits.collapse_ratio is not None and loss < limits.collapse_ratio * self.first_loss
        # A model that knows its task starts low: only a fall from a loss worth the name is suspicious.
        if collapsed and step < limits.collapse_steps and self.first_loss > 0.5:
            raise Leak(
                f"the train loss fell from {self.first_loss:.2f} to {loss:.4f} nats within {step + 1} steps, "
                "which is implausible: suspected leak of the labels (stopping.collapse_ratio)"
            )
        # Single batches are noisy: without smoothing the luckiest of them would always look like a signal.
        smooth = sum(self.recent) / len(self.recent)
        if step + 1 == limits.no_signal_steps and smooth > self.first_loss - limits.min_delta:
            return f"no learning signal after {step + 1} steps"
        return None

    @property
    def best_step(self) -> int:
        """The step with the lowest evaluation loss, -1 before the first evaluation."""
        return self.bests["loss"]["step"] if "loss" in self.bests else -1

    def improved(self, step: int) -> list[str]:
        """The metrics whose best value is that of this step."""
        return [metric for metric, best in self.bests.items() if best["step"] == step]

    def evaluated(
        self, step: int, loss: float, accuracy: float = 0.0, generated: Mapping[str, float] | None = None
    ) -> str | None:
        """Take an evaluation into account.

        Args:
            step: After how many steps it was made.
            loss: Nats a token.
            accuracy: The share of first answer tokens predicted right.
            generated: Further metrics, higher is better, where answers were generated.

        Returns:
            Why to stop, or None.
        """
        for metric, value in {"loss": loss, "first_token": accuracy, **(generated or {})}.items():
            best = self.bests.get(metric)
            if best is None or (value < best["value"] if metric == "loss" else value > best["value"]):
                self.bests[metric] = Best(value=value, step=step)
        self.last_accuracy = accuracy
        if accuracy > self.peak_accuracy:
            self.peak_accuracy, self.peak_step = accuracy, step
        self.rising = self.rising + 1 if loss > self.last_loss else 0
        self.last_loss = loss
        if loss < self.plateau_loss - self.settings.min_delta:
            self.plateau_loss, self.stale = loss, 0
        else:
            self.stale += 1
        limits = self.settings
        if limits.worse_evaluations is not None and self.rising >= limits.worse_evaluations:
            return f"evaluation loss worse {self.rising} times running"
        if limits.patience is not None and self.stale >= limits.patience and step >= limits.min_steps:
            return f"plateau: {self.stale} evaluations without {limits.min_delta} nats of improvement"
        return None
