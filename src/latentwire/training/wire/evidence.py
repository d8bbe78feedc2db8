"""What the objectives of one step look at; each part is computed at most once, and only if one asks for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from latentwire.lm.masks.reading import Columns, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced
from latentwire.lm.scoring.questions import Questions, Shared
from latentwire.lm.tapping import States, depth
from latentwire.training.wire.part import Part
from latentwire.training.wire.teacher import TEXT, Teaching, states
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.reader_text import OwnText
from latentwire.wires.latent.translators import States as SourceStates


class Encoded:
    """The message of a part's contexts, for all readers of a step."""

    def __init__(self, modules: LatentModules, part: Part) -> None:
        self.modules, self.part = modules, part

    @cached_property
    def _read(self) -> Any:
        return self.modules.encoder.read(self.part.contexts)

    @property
    def states(self) -> SourceStates:
        """What the source of a bridge computed of the contexts."""
        states: SourceStates = self._read.states
        return states

    @cached_property
    def whole(self) -> Latents:
        """All latents."""
        # The objective `flow` looks at the same states: the source need not read twice.
        latents: Latents = self.modules.refine(self.modules.encoder.translate(self._read))
        return latents

    @cached_property
    def message(self) -> Latents:
        """What the readers get: `keep` of the latents, drawn anew for every context and step."""
        return self.whole if self.part.keep >= 1 else self._thinned(self.whole)

    @cached_property
    def deranged(self) -> Latents:
        return self.message.select(torch.tensor(self.part.other, device=self.message.valid.device))

    def _thinned(self, latents: Latents) -> Latents:
        rows = []
        for row, valid in enumerate(latents.valid.tolist()):
            draw = self.part.draw("keep", row)
            kept = [known and draw.random() < self.part.keep for known in valid]
            # Something must be left to read: the first latent, which readers lean on, if nothing else.
            rows.append(kept if any(kept) else [n == valid.index(True) for n in range(len(valid))])
        return replace(latents, valid=latents.valid & torch.tensor(rows, device=latents.valid.device))


class Evidence:
    """One reader's part of a step; N is the number of answer tokens.

    lm: as it is trained, with its adapters where it has any. teaching: the same reader without them.
    taps: the layers whose hidden states objectives ask for. best_accuracy: the highest running one so far.
    """

    def __init__(
        self,
        encoded: Encoded,
        reader: str,
        lm: LM,
        teaching: Teaching,
        taps: Sequence[int] = (),
        best_accuracy: float = 0.0,
    ) -> None:
        self.encoded, self.reader, self.lm, self._teaching = encoded, reader, lm, teaching
        self._taps, self.best_accuracy = tuple(taps), best_accuracy

    @property
    def teacher_lm(self) -> LM:
        return self._teaching.lm

    @property
    def depth(self) -> int:
        """How many layers the reader has."""
        return depth(self.lm)

    @property
    def contexts(self) -> list[str]:
        return self.encoded.part.contexts

    @property
    def groups(self) -> list[str]:
        return self.encoded.part.groups

    @property
    def questions(self) -> Questions:
        """What is asked behind each context's latents."""
        return self.encoded.part.questions[self.reader]

    @property
    def plain(self) -> Questions:
        """The same questions and answers as they are asked behind the text."""
        return self.encoded.part.plain[self.reader]

    @property
    def text(self) -> Shared:
        """What latents are made of as the reader's own tokens: contexts, or whole prompts."""
        return self.encoded.part.text[self.reader]

    @property
    def lengths(self) -> list[int]:
        """Tokens of every answer in the whole step."""
        return self.encoded.part.lengths[self.reader]

    @property
    def labels(self) -> int:
        """N."""
        return len(self.questions.place)

    @property
    def place(self) -> Tensor:
        """`(N,)`: each answer token's index within its answer."""
        return self.questions.place

    @property
    def first(self) -> Tensor:
        """`(A,)`: which of the N tokens are an answer's first."""
        return self.questions.first

    @property
    def textual(self) -> bool:
        """The readers read the text in this step instead of the latents."""
        return self.encoded.part.textual

    @property
    def at(self) -> tuple[Tensor, ...]:
        """Where gradient norms of single objectives are taken.

        It is the message, or the hidden states where gradients end before it: in a textual step, and where nothing
        of the encoder is trained, as for a new reader.
        """
        tensors = () if self.textual else self.message.tensors
        return tensors if any(tensor.requires_grad for tensor in tensors) else (self.student.hidden,)

    def draw(self, name: str, row: int) -> random.Random:
        """A stream of draws for a context of this step."""
        return self.encoded.part.draw(name, row)

    @property
    def message(self) -> Latents:
        return self.encoded.message

    @cached_property
    def delivered(self) -> Shared:
        """The latents as the reader gets them, without text. Raises `UserError` where they are nothing alone."""
        return self.encoded.modules.deliver(self.message, self.reader)

    @cached_property
    def before(self) -> Shared:
        """What stands before the questions: the latents, and the text too where the wire's layout says so."""
        if self.encoded.modules.config.shown != "text":
            return self.delivered
        return self._beside(self.message)

    def _beside(self, message: Latents) -> Shared:
        return self.encoded.modules.deliver(message, self.reader, OwnText(self.text, self.lm))

    @cached_property
    def _student(self) -> tuple[Forced, States]:
        if self.encoded.part.textual:
            return states(self.plain, self.text, self.lm, self._taps)
        return states(self.questions, self.before, self.lm, self._taps)

    @property
    def student(self) -> Forced:
        """The reader behind the latents (behind the text in a textual step): hidden `(N, D)`, labels `(N,)`."""
        return self._student[0]

    @property
    def student_states(self) -> States:
        """Its hidden states `(N, D)` behind the tapped layers."""
        return self._student[1]

    @cached_property
    def deranged(self) -> Forced:
        """The reader behind another context's latents, all else as it is."""
        return self.questions.forced(self._beside(self.encoded.deranged), self.lm)

    @cached_property
    def _taught(self) -> tuple[Forced, States] | None:
        return self._teaching.read(self.plain, self.text, self._taps)

    @property
    def teacher(self) -> Forced | None:
        """The same reader behind the text itself; nothing flows into it. None if there was no memory for it."""
        return None if self._taught is None else self._taught[0]

    @property
    def teacher_states(self) -> States:
        """The teacher's hidden states behind the tapped layers; only where there is a teacher."""
        assert self._taught is not None
        return self._taught[1]

    def imitated(self, wire: str) -> Memory | None:
        """Keys and values that a finished wire gives this reader for the same contexts; nothing flows into it.

        Args:
            wire: `TEXT` for those that the reader itself has of their text.

        Returns:
            None if there was no memory for it.
        """
        if wire == TEXT:
            return self._teaching.memory(self.text)
        return self._teaching.delivered(wire, self.reader, self.contexts, self.encoded.modules.config.carry)

    @property
    def _text_columns(self) -> Columns:
        assert self.text.columns is not None
        return self.text.columns

    @property
    def text_valid(self) -> Tensor:
        """`(B, T)`: the text's tokens that are no padding."""
        return self._text_columns.valid

    @cached_property
    def text_embeddings(self) -> Tensor:
        """`(B, T, D)` in float32: the reader's own embeddings of the text."""
        assert self.text.content is not None
        return self.lm.embed(self.text.content).detach().float()

    @property
    def _soft_columns(self) -> Columns:
        assert self.delivered.columns is not None
        return self.delivered.columns

    @property
    def soft_valid(self) -> Tensor:
        """`(B, M)`: the reader's soft tokens that are no padding."""
        return self._soft_columns.valid

    @cached_property
    def spans(self) -> Tensor:
        """`(B, M, T)` in float32: one where a text's token stands in the span that a soft token stands for.

        A span ends where its soft token stands and begins behind the one before; their positions, in the source's
        tokens or by rank, are scaled to the reader's tokens. Those behind the text (slots) share it equally.
        """
        soft = self._soft_columns
        return self._spans(soft.valid, soft.positions, self.delivered.end)

    @property
    def source_spans(self) -> Tensor:
        """`spans` of all latents of the message, whatever the reader gets of them."""
        found, device = self.encoded.whole, self._text_columns.valid.device
        return self._spans(found.valid.to(device), found.positions.to(device), found.length.to(device))

    def _spans(self, valid: Tensor, positions: Tensor, end: Tensor) -> Tensor:
        columns, source = self._text_columns, end[:, None].clamp_min(1)
        rank = valid.long().cumsum(1) * valid
        count = rank.amax(1, keepdim=True).clamp_min(1)
        behind = torch.where(valid, positions, 0).amax(1, keepdim=True) >= source
        ends = torch.where(behind, rank / count, (positions + 1) / source)
        ends = torch.where(valid, ends, 0.0)
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends.cummax(1).values[:, :-1]], 1)
        place = ((columns.positions + 0.5) / self.text.end[:, None].clamp_min(1))[:, None]
        member = (starts[..., None] < place) & (place <= ends[..., None]) & columns.valid[:, None]
        return member.float()

    @property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the reader's embeddings: mean and spread of each channel `(D,)`, and their mean square."""
        return self._teaching.table
