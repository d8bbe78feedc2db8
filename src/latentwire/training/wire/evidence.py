"""Lazily cached inputs of one step's losses: every pass runs at most once, and only if an objective needs it."""

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
from latentwire.training.wire.teacher import TEXT, Teacher, states
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules
from latentwire.wires.latent.reader_text import OwnText
from latentwire.wires.latent.translators import States as SourceStates


class Encoded:
    """The message of a part's contexts; all readers of a step get the same one."""

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
        return self._latents(self._read)

    def _latents(self, states: Any) -> Latents:
        latents: Latents = self.modules.refine(self.modules.encoder.translate(states))
        return latents

    @cached_property
    def message(self) -> Latents:
        """The latents that readers get: a share `keep` of them, drawn anew for every context and step."""
        return self.whole if self.part.keep >= 1 else self._thinned(self.whole)

    @cached_property
    def deranged(self) -> Latents:
        """The message with every context's latents exchanged for those of a context of another group.

        Of a step in parts, that context may be another part's; then it is encoded here too.
        """
        message = self.message
        if self.part.beyond:
            further = self._latents(self.modules.encoder.read(list(self.part.beyond)))
            if self.part.keep < 1:
                further = self._thinned(further, len(self.part.contexts))
            message = message.beside(further)
        return message.select(torch.tensor(self.part.other, device=message.valid.device))

    def _thinned(self, latents: Latents, first: int = 0) -> Latents:
        """The latents without those that are dropped. first: the part's number of the first context."""
        rows = []
        for row, valid in enumerate(latents.valid.tolist(), first):
            draw = self.part.draw("keep", row)
            kept = [known and draw.random() < self.part.keep for known in valid]
            # At least one latent must remain: the first, which readers lean on.
            rows.append(kept if any(kept) else [n == valid.index(True) for n in range(len(valid))])
        return replace(latents, valid=latents.valid & torch.tensor(rows, device=latents.valid.device))


class Evidence:
    """One reader's part of a step. N is the number of answer tokens.

    Args:
        encoded: the message and the part it is made of.
        reader: its name.
        lm: the reader as it is trained, with its adapters where it has any.
        teacher: the reader as it was before training.
        taps: the layers whose hidden states objectives need.
        best_accuracy: the highest running accuracy of first answer tokens so far.
    """

    def __init__(
        self,
        encoded: Encoded,
        reader: str,
        lm: LM,
        teacher: Teacher,
        taps: Sequence[int] = (),
        best_accuracy: float = 0.0,
    ) -> None:
        self.encoded, self.reader, self.lm, self._teacher = encoded, reader, lm, teacher
        self._taps, self.best_accuracy = tuple(taps), best_accuracy

    @property
    def teacher_lm(self) -> LM:
        return self._teacher.lm

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
        """The questions and answers that follow each context's latents."""
        return self.encoded.part.questions[self.reader]

    @property
    def plain(self) -> Questions:
        """The same questions and answers as they follow the text."""
        return self.encoded.part.plain[self.reader]

    @property
    def text(self) -> Shared:
        """The contexts, or whole prompts, that latents are made of, as the reader's own tokens."""
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
        """Whether the readers read the text in this step instead of the latents."""
        return self.encoded.part.textual

    @property
    def at(self) -> tuple[Tensor, ...]:
        """Where gradient norms of single objectives are taken.

        That is the message, or the hidden states where no gradient reaches the message: in a textual step, and
        where nothing of the encoder is trained, as for a new reader.
        """
        tensors = () if self.textual else self.message.tensors
        return tensors if any(tensor.requires_grad for tensor in tensors) else (self.student.hidden,)

    def draw(self, name: str, row: int) -> random.Random:
        """A stream of draws for a context of this step."""
        return self.encoded.part.draw(name, row)

    @property
    def message(self) -> Latents:
        """The latents that all readers of the step get."""
        return self.encoded.message

    @cached_property
    def delivered(self) -> Shared:
        """The latents as this reader's adapter delivers them, without text.

        Raises:
            UserError: the adapter delivers nothing without a text.
        """
        return self.encoded.modules.deliver(self.message, self.reader)

    @cached_property
    def before(self) -> Shared:
        """What precedes the questions: the latents, and the text too where the wire's layout says so."""
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
        """The reader after the latents (after the text in a textual step): hidden `(N, D)`, labels `(N,)`."""
        return self._student[0]

    @property
    def student_states(self) -> States:
        """Its hidden states `(N, D)` after the tapped layers."""
        return self._student[1]

    @cached_property
    def deranged(self) -> Forced:
        """The reader after the latents of another context, all else unchanged."""
        return self.questions.forced(self._beside(self.encoded.deranged), self.lm)

    @cached_property
    def _teacher_pass(self) -> tuple[Forced, States] | None:
        return self._teacher.read(self.plain, self.text, self._taps)

    @property
    def teacher(self) -> Forced | None:
        """The reader as it was, after the text itself, without gradients; None if it did not fit into memory."""
        return None if self._teacher_pass is None else self._teacher_pass[0]

    @property
    def teacher_states(self) -> States:
        """The teacher's hidden states `(N, D)` after the tapped layers; only where there is a teacher."""
        assert self._teacher_pass is not None
        return self._teacher_pass[1]

    def imitated(self, wire: str) -> Memory | None:
        """Keys and values that a finished wire gives this reader for the same contexts, without gradients.

        Args:
            wire: its folder, or `TEXT` for the keys and values that the reader itself has of the text.

        Returns:
            None if it did not fit into memory.
        """
        if wire == TEXT:
            return self._teacher.memory(self.text)
        return self._teacher.delivered(wire, self.reader, self.contexts, self.encoded.modules.config.carry)

    @property
    def _text_columns(self) -> Columns:
        assert self.text.columns is not None
        return self.text.columns

    @property
    def text_valid(self) -> Tensor:
        """`(B, T)` bool: which columns of the text are not padding."""
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
        """`(B, M)` bool: which of the reader's soft tokens are not padding."""
        return self._soft_columns.valid

    @cached_property
    def spans(self) -> Tensor:
        """`(B, M, T)` in float32: 1 where a token of the text lies in the span that a soft token stands for.

        A span ends at its soft token's position and begins after the one before it. Positions, in the source's
        tokens or by rank, are scaled to the reader's tokens. Soft tokens after the text (slots) share it equally.
        """
        soft = self._soft_columns
        return self._spans(soft.valid, soft.positions, self.delivered.end)

    @property
    def source_spans(self) -> Tensor:
        """`spans` of all latents, dropped ones included."""
        latents, device = self.encoded.whole, self._text_columns.valid.device
        return self._spans(latents.valid.to(device), latents.positions.to(device), latents.length.to(device))

    def _spans(self, valid: Tensor, positions: Tensor, end: Tensor) -> Tensor:
        columns, source = self._text_columns, end[:, None].clamp_min(1)
        rank = valid.long().cumsum(1) * valid
        count = rank.amax(1, keepdim=True).clamp_min(1)
        after_text = torch.where(valid, positions, 0).amax(1, keepdim=True) >= source
        ends = torch.where(after_text, rank / count, (positions + 1) / source)
        ends = torch.where(valid, ends, 0.0)
        starts = torch.cat([torch.zeros_like(ends[:, :1]), ends.cummax(1).values[:, :-1]], 1)
        place = ((columns.positions + 0.5) / self.text.end[:, None].clamp_min(1))[:, None]
        member = (starts[..., None] < place) & (place <= ends[..., None]) & columns.valid[:, None]
        return member.float()

    @property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of each channel of the reader's embeddings `(D,)`, and their mean square."""
        return self._teacher.table
