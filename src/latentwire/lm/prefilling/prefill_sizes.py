"""The sizes at which prefixes are read: few enough that one graph serves many lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from latentwire.lm.decoding.decode_step import bucket
from latentwire.lm.masks.reading import LayerRange, Reading
from latentwire.lm.prefix import Prefix

LEAST = 16
"""The fewest columns that are read."""
STEPS = 4
"""Sizes between one power of two and the next."""
PER_PROCESSOR = 4.5e9
"""Floating-point operations, a layer and multiprocessor, up to which a pass waits for its launches: a layer's take
1.15 ms (docs/performance.md), and so do 0.6 · 10¹² operations on the 132 multiprocessors of an H200."""


@dataclass(frozen=True)
class PrefixSize:
    """What a graph is captured for; prefixes that differ in nothing of it share the graph.

    Attributes:
        rows, columns: of the prefix, padded.
        memory: columns of the memory, padded; 0 without one.
        content: of embeddings their dtype, of token ids `int64`.
        kept: dtype of the memory's keys and values; None without one.
        plain: whether the kernel's own causal mask is right.
        layers: the layers in which blocks count; None for all.
    """

    rows: int
    columns: int
    memory: int
    content: torch.dtype
    kept: torch.dtype | None
    plain: bool
    layers: LayerRange | None

    @classmethod
    def of(cls, prefix: Prefix, reading: Reading) -> PrefixSize:
        """The size that serves a prefix; `reading` is its reading, with the memory rotated."""
        rows, columns = prefix.columns.positions.shape
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        memory = reading.memory
        return cls(
            rows=bucket(rows, 1),
            columns=rounded_up(columns),
            memory=0 if memory is None else rounded_up(memory.columns.width),
            content=content.dtype,
            kept=None if memory is None else memory.keys[0].dtype,
            plain=reading.plain,
            layers=reading.layers,
        )


def rounded_up(columns: int) -> int:
    """The next size: `STEPS` between powers of two, at least `LEAST` and `LEAST` apart."""
    step = max(LEAST, (1 << max(0, columns - 1).bit_length()) // (2 * STEPS))
    return -(-columns // step) * step


def operations(device: torch.device) -> float:
    """How many operations a layer may take for a pass to be read at a size: beyond, arithmetic takes longer than
    launches, and padding would cost more than a graph saves."""
    if device.type != "cuda":
        return float("inf")
    found = torch.cuda.get_device_properties(device)
    # Before Hopper a multiprocessor takes about twice as long.
    return PER_PROCESSOR * found.multi_processor_count * (1.0 if found.major >= 9 else 0.5)
