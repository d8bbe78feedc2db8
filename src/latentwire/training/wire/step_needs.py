"""The operations of one training step of a wire, counted; benchmarks and estimates use it."""

from __future__ import annotations

from dataclasses import dataclass

from latentwire.lm.operation_counts import Counts, causal


@dataclass(frozen=True)
class StepShape:
    """What a step reads, lengths in tokens of one context.

    Attributes:
        contexts: how many.
        tokens: of a context.
        asked: of its questions with their answers, all together.
        answers: of these, the ones that are learned.
        latents: columns before the student's questions.
        terms: objectives that make logits for the student.
        behind: pairs of query and key inside the questions, all together.
    """

    contexts: int
    tokens: int
    asked: int
    answers: int
    latents: float
    terms: int
    behind: float


@dataclass(frozen=True)
class StepNeeds:
    """Floating-point operations of one step.

    Attributes:
        teacher: the frozen reader reads text and questions, forward only.
        encode, encode_back: the encoder's forward and backward pass.
        student: both passes of the frozen reader over latents and questions.
    """

    teacher: float
    encode: float
    encode_back: float
    student: float

    @classmethod
    def counted(
        cls,
        plain: Counts,
        adapted: Counts,
        shape: StepShape,
        *,
        teaches: bool = True,
        encodes: bool = True,
        learns: bool = True,
    ) -> StepNeeds:
        """From the shapes of models and step.

        Args:
            plain: the reader. adapted: the encoder's model with its adapters.
            teaches: whether the reader reads the text too. encodes: whether the encoder belongs to this reader's
                share. learns: whether gradients flow through the encoder's model.
        """
        n = shape.contexts
        before, both = causal(shape.tokens), float(shape.tokens**2)
        behind = shape.behind + shape.asked * shape.tokens
        latent = shape.behind + shape.asked * shape.latents
        rows = shape.terms * shape.answers
        student = plain.read(shape.asked, latent, rows) + plain.read_back(shape.asked, latent, rows)
        return cls(
            teacher=teaches * n * plain.read(shape.tokens + shape.asked, before + behind, shape.answers),
            encode=encodes * n * adapted.read(shape.tokens, both),
            # After the last layer's keys and values nothing has a gradient.
            encode_back=encodes
            * learns
            * n
            * adapted.read_back(shape.tokens, both)
            * (adapted.layers - 1)
            / max(1, adapted.layers),
            student=n * student,
        )

    def __add__(self, other: StepNeeds) -> StepNeeds:
        return StepNeeds(
            self.teacher + other.teacher,
            self.encode + other.encode,
            self.encode_back + other.encode_back,
            self.student + other.student,
        )

    @property
    def step(self) -> float:
        """All operations of a training step."""
        return self.teacher + self.encode + self.encode_back + self.student
