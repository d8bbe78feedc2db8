"""Rows of a pass that are read a few at a time on a CPU, whose caches then hold what a layer computes.

A layer writes and reads several tensors of its inner width for every column. Those of thousands of columns go
through memory each time, and it is slower than the arithmetic; a matrix product is as fast over 2,048 columns as
over more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from latentwire.lm.masks.reading import Columns, Reading, Tap

COLUMNS = 2048
"""How many columns are read at a time. Measured in `docs/performance.md`."""
Run = Callable[[Tensor, Columns, Reading, DynamicCache | None], Tensor]


_whole: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def together() -> Iterator[None]:
    """Inside the block all rows are read at once: for whoever compares rows of one pass bit by bit.

    A matrix product of other rows may round otherwise, so equal rows of two parts need not have equal states.
    """
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def parts(decoder: nn.Module, content: Tensor, reading: Reading, cache: DynamicCache | None) -> list[slice]:
    """The rows that are read together, in order; a single slice where all of them are.

    Parts are for a CPU without gradients, and only where the cache is empty: otherwise its rows would have to be
    cut apart too. Hooks see all rows at once.
    """
    rows, width = content.shape[:2]
    whole = [slice(0, rows)]
    if (
        _whole.get()
        or content.device.type != "cpu"
        or torch.is_grad_enabled()
        or type(reading) is not Reading
        or reading.spans
    ):
        return whole
    if rows < 2 or rows * width <= COLUMNS or (cache is not None and cache.get_seq_length()):
        return whole
    if watched(decoder):
        return whole
    count = min(rows, -(-rows * width // COLUMNS))
    ends = [rows * number // count for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def watched(decoder: nn.Module) -> bool:
    """Whether anything waits for the beginning or the end of a module's pass."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in decoder.modules())


def run_by_parts(
    run: Run, rows: list[slice], content: Tensor, columns: Columns, reading: Reading, cache: DynamicCache | None
) -> Tensor:
    """What `run` returns for all rows, with cache and tap filled as by one pass.

    Args:
        run: `Decoder.passed`. rows: as `parts` returns them.
        content, columns, reading, cache: as of `Decoder.run`.
    """
    hidden, caches, taps = [], [], []
    for part in rows:
        memory = None if reading.memory is None else reading.memory.select(part)
        tap = None if reading.tap is None else Tap(last=reading.tap.last)
        own = None if cache is None else DynamicCache()
        read = replace(reading, columns=reading.columns.select(part), memory=memory, tap=tap, _masks={})
        hidden.append(run(content[part], columns.select(part), read, own))
        caches.append(own)
        taps.append(tap)
    if cache is not None:
        _fill(cache, caches)
    if reading.tap is not None:
        for layer in list(taps[0].keys) if taps[0] is not None else ():
            pairs = [(tap.keys.pop(layer), tap.values.pop(layer)) for tap in taps if tap is not None]
            keys, values = zip(*pairs, strict=True)
            reading.tap.keys[layer], reading.tap.values[layer] = torch.cat(keys), torch.cat(values)
    return torch.cat(hidden)


def _fill(cache: DynamicCache, parts: list[Any]) -> None:
    """Put the rows of several caches into an empty one, layer by layer."""
    for layer in range(len(parts[0].layers)):
        held = [part.layers[layer] for part in parts]
        keys, values = torch.cat([each.keys for each in held]), torch.cat([each.values for each in held])
        for each in held:
            each.keys = each.values = None
        cache.update(keys, values, layer)
