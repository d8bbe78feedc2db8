"""Evaluation during a training: held-out loss, generated answers and samples, shared out among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from latentwire.evaluation.metrics import score_span
from latentwire.process_group import Group
from latentwire.training.trainee import Answered, Trainee
from latentwire.training.training_step import Measured


@dataclass(frozen=True)
class HeldOutResults:
    """What one evaluation found.

    Attributes:
        measured: Loss and accuracy.
        generated: Exact match and F1 of generated answers; empty where none were due.
        text: The same of the untrained model reading the text; None where no answers were ever generated.
        samples: What the trainee said to some examples.
        prefixes: By reader, what it gets in place of text, in numbers.
    """

    measured: Measured
    generated: dict[str, float]
    text: dict[str, float] | None
    samples: list[dict[str, Any]]
    prefixes: dict[str, dict[str, float]]

    def line(self) -> dict[str, Any]:
        """As diagnostics keep it."""
        line: dict[str, Any] = {
            "eval_loss": self.measured.loss,
            "eval_first_token_accuracy": self.measured.accuracy,
            "eval_documents": self.measured.firsts,
        }
        if self.prefixes:
            line["prefix"] = self.prefixes
        if self.generated and self.text is not None:
            line |= {f"eval_{name}": value for name, value in self.generated.items()}
            line |= {f"text_{name}": value for name, value in self.text.items()}
        return line

    def __str__(self) -> str:
        loss = f"evaluation loss {self.measured.loss:.4f}, first token right {self.measured.accuracy:.3f}"
        told = f"{loss}, n={self.measured.firsts}"
        if self.generated and self.text is not None:
            told += f"; F1 {self.generated['f1']:.3f} (the text before training: {self.text['f1']:.3f})"
        return told


@dataclass(frozen=True)
class HeldOut:
    """What is measured on held-out examples; every process gets the same numbers, those of one process alone.

    Attributes:
        trainee: What is trained.
        group: Who shares the examples out.
        heed: Called before each pass; raises if a signal has asked for a stop.
    """

    trainee: Trainee
    group: Group
    heed: Callable[[], None]

    def measured(self) -> Measured:
        """Loss and accuracy of first answer tokens."""
        mine = self.group.share(list(self.trainee.held_out()))
        return Measured.together(self.group.interleaved(self.trainee.step.measure(self._heeding(mine))))

    def scores(self, count: int, *, text: bool = False) -> dict[str, float]:
        """Means of exact match and F1 of generated answers.

        Args:
            count: To how many examples.
            text: Of the model as it was before training, reading the text.
        """
        batches = self.trainee.asked(count)
        mine = [self.trainee.answers(batch, text=text) for batch in self._heeding(self.group.share(batches))]
        return _means([answer for answers in self.group.interleaved(mine) for answer in answers])

    def samples(self) -> list[dict[str, Any]]:
        """What the trainee says to some examples; the first process alone asks it."""
        return self.trainee.samples() if self.group.leads else []

    def prefixes(self) -> dict[str, dict[str, float]]:
        """What readers get in place of text, in numbers; the first process alone looks."""
        return self.trainee.prefixes() if self.group.leads else {}

    def _heeding(self, parts: Iterable[Any]) -> Iterator[Any]:
        for part in parts:
            self.heed()
            yield part


def _means(answers: Sequence[Answered]) -> dict[str, float]:
    scores = [score_span(answer.prediction, answer.golds) for answer in answers]
    return {name: sum(score[name] for score in scores) / len(scores) for name in ("exact_match", "f1")}
