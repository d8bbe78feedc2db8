"""Batches that are read in halves once memory has run out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


@dataclass
class Halving:
    """Reads batches, and smaller ones from the first time that the memory of an accelerator runs out.

    What was read before stays read: only the batch that did not fit is read again, in halves.

    Attributes:
        log: called with one sentence, the first time.
        most: the most columns of a batch that can be halved; None until memory has run out.

    Example:
        >>> [done for _, done in Halving().read([1, 2, 3], sum, len, str)]
        [6]
    """

    log: Callable[[str], None] = _warn
    most: int | None = None

    def read(
        self,
        batch: Sequence[T],
        run: Callable[[Sequence[T]], R],
        columns: Callable[[Sequence[T]], int],
        name: Callable[[T], str],
    ) -> Iterator[tuple[Sequence[T], R]]:
        """Yields parts of the batch in order, each with what `run` made of it; one part if everything fits.

        Args:
            batch: what is read together.
            run: reads a part; after an out-of-memory error it is called again, with less.
            columns: of a part, padding included.
            name: what a single item is called in the error.

        Raises:
            torch.OutOfMemoryError: a single item does not fit.
        """
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            size, several = columns(part), len(part) > 1
            told = None
            if not several or self.most is None or size <= self.most:
                try:
                    done = run(part)
                except torch.OutOfMemoryError as error:
                    told = str(error)
                if told is None:
                    yield part, done
                    del done  # its tensors would stand beside those of the next part
                    continue
                # After the handler: the exception holds on to the tensors of the pass that failed.
                emptied()
                if not several:
                    raise torch.OutOfMemoryError(
                        f"{name(part[0])} does not fit into memory, even alone: {told or 'out of memory'}"
                    )
                self._lower(size)
            half = (len(part) + 1) // 2
            waiting += [part[half:], part[:half]]

    def _lower(self, size: int) -> None:
        if self.most is None:
            self.log(
                f"out of memory: a batch of {size:,} tokens is read in halves, and the next ones are smaller too; "
                "answers do not depend on it beyond rounding"
            )
        self.most = max(1, size // 2)


def emptied() -> None:
    """Give unused memory of the accelerators back, so that pieces of it can be put together."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
