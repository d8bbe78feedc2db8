"""How many columns an evaluation reads at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentwire.evaluation.encoded import EncodedExample, total_columns
from latentwire.lm.model import LM
from latentwire.lm.operation_counts import Counts
from latentwire.lm.scoring.shared_scorer import BATCH_TOKENS

MOST = 65_536
"""Columns of a batch on an accelerator: a step of generation takes nearly as long for 30 texts as for 200."""
BATCHES = 8
"""The fewest batches of a task, where each has BATCH_TOKENS at least: processes share them out."""
SHARE = 0.125
"""Of an accelerator's memory, what a batch may take. Of all of it and not of what is free: then one machine always
makes the same batches, and equal batches give equal answers."""
ANSWERS = 0.125
"""Of a batch's columns, those whose logits are held at once."""


def batch_tokens(lm: LM, items: Sequence[EncodedExample]) -> int:
    """The columns of a batch for these examples; on a CPU BATCH_TOKENS, since more would only leave its caches."""
    if lm.device.type != "cuda":
        return BATCH_TOKENS
    config = lm.model.config.get_text_config()
    each = column_bytes(Counts.of(lm.model), config.vocab_size, lm.model.dtype.itemsize)
    return fitting(total_columns(items), each, torch.cuda.get_device_properties(lm.device).total_memory)


def column_bytes(counts: Counts, vocabulary: int, size: int) -> float:
    """Bytes that a column takes: keys and values thrice (read, scored, generated from), one layer's activations,
    and the logits of answers in float32 with their logarithms.

    Args:
        counts: of the reader. vocabulary: its size. size: bytes of a number.
    """
    return size * (3 * counts.column + counts.kept / 2) + 8 * ANSWERS * vocabulary


def fitting(columns: int, each: float, memory: int) -> int:
    """The columns of a batch on an accelerator.

    Args:
        columns: of all examples. each: bytes a column takes. memory: of the accelerator, in bytes.

    Example:
        >>> fitting(300_000, 200_000, 139 * 2**30), fitting(300_000, 800_000, 24 * 2**30), fitting(9_000, 1, 2**30)
        (37500, 8192, 8192)
    """
    return max(BATCH_TOKENS, min(MOST, columns // BATCHES, int(SHARE * memory / each)))
