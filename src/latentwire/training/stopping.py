"""When a finetuning ends before its last step."""

from __future__ import annotations

from dataclasses import dataclass, field

from latentwire.training.config import Stopping

SMOOTHED = 20
"""Steps whose mean train loss is compared with the first one's."""


class Leak(RuntimeError):
    """Training would read, or seems to read, its own labels."""


@dataclass
class Judge:
    """Keeps what the criteria need; its fields are saved with every checkpoint, so a resumed run judges alike.

    best_loss, best_step: of the evaluation loss. stale: evaluations since it improved by `min_delta`.
    rising: evaluations running at which it rose. peak_accuracy, peak_step, last_accuracy: of first answer tokens
    predicted right. first_loss: the train loss at step 0; recent: of the last
    `SMOOTHED` steps.
    """

    settings: Stopping
    best_loss: float = float("inf")
    best_step: int = -1
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
        """Tell a step's train loss (nats a token); returns why to stop, or None.

        Raises:
            Leak: the loss fell implausibly fast.
        """
        if self.first_loss is None:
            self.first_loss = loss
        self.recent = [*self.recent, loss][-SMOOTHED:]
        limits = self.settings
        if not loss < float("inf"):
            return "the train loss is not a finite number"
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

    def evaluated(self, step: int, loss: float, accuracy: float = 0.0) -> str | None:
        """Tell an evaluation's loss and accuracy after `step` steps; returns why to stop, or None."""
        self.last_accuracy = accuracy
        if accuracy > self.peak_accuracy:
            self.peak_accuracy, self.peak_step = accuracy, step
        self.rising = self.rising + 1 if loss > self.last_loss else 0
        self.last_loss = loss
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
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
