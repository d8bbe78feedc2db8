"""Forward passes behind what is shared, with hidden states of chosen layers; the teacher's in chunks that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.masks.reading import Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced, Prefix
from latentwire.lm.scoring.questions import Questions, Shared
from latentwire.lm.tapping import States, tapping
from latentwire.wires.latent.latent_config import Carry
from latentwire.wires.latent.latent_wire import Latent
from latentwire.wires.latent.modules import LatentModules

Part = TypeVar("Part")
TEXT = "text"
"""Stands for a finished wire where what is followed are the reader's own keys and values of the text."""


def states(questions: Questions, shared: Shared, lm: LM, taps: Sequence[int] = ()) -> tuple[Forced, States]:
    """`Questions.forced`, and hidden states `(N, D)` behind the tapped layers."""
    with tapping(lm, taps) as found:
        forced = questions.forced(shared, lm)
    width = questions.ids.shape[1]
    return forced, {layer: questions.at(hidden[:, -width:]) for layer, hidden in found.items()}


class Teaching:
    """A frozen reader that reads the text, or over a finished wire, as many rows at a time as memory allows.

    rows, contexts: how many that is of either; None until memory has run out. It depends on the machine: no
    checkpoint holds it. multiple: of columns to which a wire's contexts are padded.
    """

    def __init__(self, lm: LM, log: Callable[[str], None], multiple: int = 1) -> None:
        self.lm, self._log, self.multiple = lm, log, multiple
        self.rows: int | None = None
        self.contexts: int | None = None
        self._wires: dict[str, LatentModules] = {}

    @torch.no_grad()
    def read(self, questions: Questions, text: Shared, taps: Sequence[int] = ()) -> tuple[Forced, States] | None:
        """All rows behind the text; None if there is no memory for a single one, which is said in the log."""

        def some(rows: slice) -> tuple[Forced, States]:
            return states(questions.select(rows), text.select(rows), self.lm, taps)

        parts, self.rows = self._fitting(some, len(questions.ids), self.rows, "read", "texts")
        if parts is None or len(parts) == 1:
            return None if parts is None else parts[0]
        forced = Forced(
            torch.cat([each.hidden for each, _ in parts]), torch.cat([each.labels for each, _ in parts])
        )
        return forced, {layer: torch.cat([found[layer] for _, found in parts]) for layer in taps}

    def _fitting(
        self, some: Callable[[slice], Part], count: int, size: int | None, does: str, what: str
    ) -> tuple[list[Part] | None, int | None]:
        """`some` of all rows in chunks that fit, halved where memory runs out, and how many rows those have."""
        parts: list[Part] = []
        at = 0
        while at < count:
            now = min(size or count, count - at)
            part = self._try(some, slice(at, at + now))
            if part is None and now == 1:
                single = what.removesuffix("s")
                self._log(
                    f"out of memory: {self.lm.name} cannot {does} one {single} as teacher; the step goes without"
                )
                return None, size
            if part is None:
                size = now // 2
                self._log(f"out of memory: {self.lm.name} {does}s {size} instead of {now} {what} as teacher")
                continue
            parts.append(part)
            at += now
        return parts, size

    def _try(self, some: Callable[[slice], Part], rows: slice) -> Part | None:
        try:
            return some(rows)
        except torch.OutOfMemoryError:
            pass
        # Behind the handler: the exception holds on to the tensors of the pass that failed.
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.no_grad()
    def delivered(
        self, wire: str, reader: str, contexts: Sequence[str], carry: Carry = "context"
    ) -> Memory | None:
        """Keys and values that a finished wire gives the reader for these contexts.

        Args:
            carry: what the contexts are.

        Returns:
            None if there is no memory for a single context, which is said in the log.

        Raises:
            UserError: as `Latent.bind`, or the wire carries something else or gives no keys and values.
        """
        if wire not in self._wires:
            # A wire is tried before it has its weights: autocast would keep what it had then, all the step.
            with torch.autocast(self.lm.device.type, enabled=False):
                self._wires[wire] = Latent(path=wire).bind(self.lm).modules
            self._wires[wire].pad_to(self.multiple)
            self._wires[wire].keep_drafts(True)
        modules = self._wires[wire]
        if modules.config.carry != carry:
            raise UserError(f"objectives: found {wire} with carry: {modules.config.carry}, expected {carry}.")

        def some(rows: slice) -> Memory:
            memory = modules.deliver(modules(contexts[rows]), reader).memory
            if memory is None:
                raise UserError(f"objectives: {wire} gives {reader} no keys and values, expected both.")
            return memory

        parts, self.contexts = self._fitting(some, len(contexts), self.contexts, "encode", "contexts")
        if parts is None or len(parts) == 1:
            return None if parts is None else parts[0]
        return Memory.join(parts)

    @torch.no_grad()
    def memory(self, text: Shared) -> Memory | None:
        """The reader's own keys and values of a text. None if there is no memory for a single one, as above."""

        def some(rows: slice) -> Memory:
            part = text.select(rows)
            assert part.columns is not None
            return self.lm.memorize(Prefix(ids=part.content, columns=part.columns))[1]

        parts, self.rows = self._fitting(some, len(text.end), self.rows, "read", "texts")
        return None if parts is None else Memory.join(parts)

    def ahead(self, contexts: Sequence[str]) -> None:
        """As `LatentModules.ahead`, of the wires that are followed."""
        for modules in list(self._wires.values()):
            modules.ahead(contexts)

    @cached_property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the reader's embeddings: mean and spread of each channel `(D,)`, and their mean square."""
        table = self.lm.embeddings().detach().float()
        return table.mean(0), table.std(0).clamp_min(1e-6), table.square().mean()
