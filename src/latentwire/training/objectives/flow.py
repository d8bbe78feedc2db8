"""The objective of a bridge whose latents are drawn by a flow: the embeddings that the flow should reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.scoring.questions import IGNORE
from latentwire.training.objectives.term import Term, refuse_draft
from latentwire.wires.latent.encoders.source import SourceEncoder
from latentwire.wires.latent.translators import DitTranslator

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.training.wire.evidence import Evidence
    from latentwire.wires.latent.latent_config import Layout
    from latentwire.wires.latent.modules import LatentModules


class FlowMatching(Term):
    """Velocities of the translator `dit` lead from noise straight to embeddings of the reader (2210.02747).

    Latents are as wide as these embeddings, so no map stands between them; each target is scaled to a root mean
    square of one, like the noise. Only this objective sees the targets: what the reader reads is sampled from
    noise.

    Attributes:
        teacher: `answer`: the tokens of the answers in a row, cut off or filled up with end-of-sequence tokens.
            `prompt`: the context, each latent being the mean of the tokens that it stands for.
        reader: Whose embeddings, where the wire has several readers.
    """

    needs_message: ClassVar[bool] = True

    kind: Literal["flow"] = "flow"
    teacher: Literal["answer", "prompt"] = "answer"
    reader: str | None = None

    @model_validator(mode="after")
    def _is_no_function_of_the_message(self) -> Self:
        if self.auto:
            raise ValueError("flow: found auto, expected a weight, since it has no gradient at the message")
        return self

    @property
    def layout(self) -> Layout | None:
        """Latents that replace the prompt are read without it."""
        return "only" if self.teacher == "prompt" else None

    def check(self, modules: LatentModules, readers: Mapping[str, LM]) -> None:
        encoder = modules.encoder
        if not isinstance(encoder, SourceEncoder) or not isinstance(encoder.translator, DitTranslator):
            raise UserError(
                f"objectives: flow found {modules.config.encoder.described}, expected the encoder source with the "
                "translator dit."
            )
        if self.teacher == "prompt":
            refuse_draft(self.kind, modules)
        if self.reader is not None and self.reader not in readers:
            known = ", ".join(readers)
            raise UserError(f"objectives: flow found the reader {self.reader!r}, expected one of {known}.")
        for name, lm in readers.items():
            width = lm.embeddings().shape[1]
            if self.reader in (None, name) and encoder.settings.width != width:
                raise UserError(
                    f"objectives: flow found latents of width {encoder.settings.width}, expected the {width} of "
                    f"{name}'s embeddings."
                )

    def loss(self, evidence: Evidence) -> Tensor:
        if self.reader not in (None, evidence.reader):
            return torch.zeros((), device=evidence.lm.device)
        encoder, states = evidence.encoded.modules.encoder, evidence.encoded.states
        assert isinstance(encoder, SourceEncoder)
        assert isinstance(encoder.translator, DitTranslator)
        aims, weights = self._answers(evidence) if self.teacher == "answer" else self._prompts(evidence)
        draws = [evidence.draw("flow", row) for row in range(len(aims))]
        aims = F.rms_norm(aims.float(), aims.shape[-1:]).to(states.places.device)
        apart = encoder.translator.matching(states, aims, draws)
        # Row by row, so that a step divided among passes and processes has the same loss.
        weights = weights.to(apart)
        rows = (apart * weights).sum(1) / weights.sum(1).clamp_min(1)
        return (rows * evidence.questions.counts.to(rows)).sum()

    def _answers(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Targets `(B, M, D)`, and which of them count."""
        real = evidence.encoded.states.real
        fill = min(evidence.lm.eos_ids, default=0)
        ids = torch.full(real.shape, fill)
        for row, labels in enumerate(evidence.questions.labels.cpu()):
            answers = labels[labels != IGNORE][: ids.shape[1]]
            ids[row, : len(answers)] = answers
        return evidence.lm.embed(ids.to(evidence.lm.device)).detach(), real

    def _prompts(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Targets `(B, M, D)`, and which of them count: those that stand for some token."""
        spans = evidence.source_spans
        share = spans / spans.sum(-1, keepdim=True).clamp_min(1)
        return share @ evidence.text_embeddings, spans.any(-1)
