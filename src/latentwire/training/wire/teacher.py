"""Teachers: a frozen reader that reads the text, or over a finished wire, in chunks that fit into memory."""

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

Chunk = TypeVar("Chunk")
TEXT = "text"
"""Instead of a finished wire: what is imitated are the reader's own keys and values of the text."""


def states(questions: Questions, shared: Shared, lm: LM, taps: Sequence[int] = ()) -> tuple[Forced, States]:
    """`Questions.forced`, with the hidden states `(N, D)` after the tapped layers."""
    with tapping(lm, taps) as tapped:
        forced = questions.forced(shared, lm)
    width = questions.ids.shape[1]
    return forced, {layer: questions.at(hidden[:, -width:]) for layer, hidden in tapped.items()}


class Teacher:
    """A frozen reader whose answers a student follows; it reads as many rows at a time as memory allows.

    Args:
        lm: the reader as it was before training.
        log: told when memory runs out.
        multiple: contexts of finished wires are padded to a multiple of this many columns.

    Attributes:
        rows, contexts: how many texts, or contexts of a finished wire, are read at a time; None until memory has
            run out once. They depend on the machine, so no checkpoint holds them.
    """

    def __init__(self, lm: LM, log: Callable[[str], None], multiple: int = 1) -> None:
        self.lm, self._log, self.multiple = lm, log, multiple
        self.rows: int | None = None
        self.contexts: int | None = None
        self._wires: dict[str, LatentModules] = {}

    @torch.no_grad()
    def read(self, questions: Questions, text: Shared, taps: Sequence[int] = ()) -> tuple[Forced, States] | None:
        """The answers after the text; None, and a line in the log, if not even one row fits into memory."""

        def read(rows: slice) -> tuple[Forced, States]:
            return states(questions.select(rows), text.select(rows), self.lm, taps)

        chunks, self.rows = self._in_chunks(read, len(questions.ids), self.rows, "read", "texts")
        if chunks is None or len(chunks) == 1:
            return None if chunks is None else chunks[0]
        forced = Forced(
            torch.cat([chunk.hidden for chunk, _ in chunks]), torch.cat([chunk.labels for chunk, _ in chunks])
        )
        return forced, {layer: torch.cat([tapped[layer] for _, tapped in chunks]) for layer in taps}

    def _in_chunks(
        self, run: Callable[[slice], Chunk], count: int, size: int | None, does: str, what: str
    ) -> tuple[list[Chunk] | None, int | None]:
        """`run` over all rows in chunks, halved when memory runs out; the chunks, and how many rows they have."""
        chunks: list[Chunk] = []
        at = 0
        while at < count:
            now = min(size or count, count - at)
            chunk = self._try(run, slice(at, at + now))
            if chunk is None and now == 1:
                single = what.removesuffix("s")
                self._log(
                    f"out of memory: {self.lm.name} cannot {does} one {single} as teacher; the step goes without"
                )
                return None, size
            if chunk is None:
                size = now // 2
                self._log(f"out of memory: {self.lm.name} {does}s {size} instead of {now} {what} as teacher")
                continue
            chunks.append(chunk)
            at += now
        return chunks, size

    def _try(self, run: Callable[[slice], Chunk], rows: slice) -> Chunk | None:
        try:
            return run(rows)
        except torch.OutOfMemoryError:
            pass
        # After the handler: the exception holds on to the tensors of the pass that failed.
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    @torch.no_grad()
    def delivered(
        self, wire: str, reader: str, contexts: Sequence[str], carry: Carry = "context"
    ) -> Memory | None:
        """Keys and values that a finished wire gives the reader for these contexts.

        Args:
            wire: its folder.
            carry: whether the contexts are contexts or whole prompts.

        Returns:
            None, and a line in the log, if not even one context fits into memory.

        Raises:
            UserError: as `Latent.bind`, or the wire carries something else or gives no keys and values.
        """
        if wire not in self._wires:
            # Binding tries a wire before it has its weights: autocast would keep those for all of the step.
            with torch.autocast(self.lm.device.type, enabled=False):
                self._wires[wire] = Latent(path=wire).bind(self.lm).modules
            self._wires[wire].pad_to(self.multiple)
            self._wires[wire].keep_drafts(True)
        modules = self._wires[wire]
        if modules.config.carry != carry:
            raise UserError(f"objectives: found {wire} with carry: {modules.config.carry}, expected {carry}.")

        def deliver(rows: slice) -> Memory:
            memory = modules.deliver(modules(contexts[rows]), reader).memory
            if memory is None:
                raise UserError(f"objectives: {wire} gives {reader} no keys and values, expected both.")
            return memory

        chunks, self.contexts = self._in_chunks(deliver, len(contexts), self.contexts, "encode", "contexts")
        if chunks is None or len(chunks) == 1:
            return None if chunks is None else chunks[0]
        return Memory.join(chunks)

    @torch.no_grad()
    def memory(self, text: Shared) -> Memory | None:
        """The reader's own keys and values of a text; None, and a line in the log, if not even one row fits."""

        def memorize(rows: slice) -> Memory:
            chunk = text.select(rows)
            assert chunk.columns is not None
            return self.lm.memorize(Prefix(ids=chunk.content, columns=chunk.columns))[1]

        chunks, self.rows = self._in_chunks(memorize, len(text.end), self.rows, "read", "texts")
        return None if chunks is None else Memory.join(chunks)

    def ahead(self, contexts: Sequence[str]) -> None:
        """`LatentModules.ahead` of the finished wires that are imitated."""
        for modules in list(self._wires.values()):
            modules.ahead(contexts)

    @cached_property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of each channel of the reader's embeddings `(D,)`, and their mean square."""
        table = self.lm.embeddings().detach().float()
        return table.mean(0), table.std(0).clamp_min(1e-6), table.square().mean()
