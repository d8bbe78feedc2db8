"""One size of prefix: tensors that inputs are copied into, and the pass over them, captured or not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from latentwire.lm.masks.reading import Columns, Memory, Reading
from latentwire.lm.prefilling.prefill_sizes import PrefixSize
from latentwire.lm.prefix import Prefix

FIELDS = ("valid", "positions", "blocks", "documents")
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-8}
"""How far a replay's logits may be from those of the pass itself, relative to their norm; in 16 bits 2 %."""


class PassingModel(Protocol):
    """What a bucket needs of a model; `Decoder` implements it."""

    model: PreTrainedModel

    def passed(self, content: Tensor, columns: Columns, reading: Reading, cache: Any = None) -> Tensor: ...

    def head(self, hidden: Tensor) -> Tensor: ...


class KeptLayers:
    """What the model gets as `past_key_values=`: it keeps every layer's keys and values and returns them."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keep a layer's `(B, H, Q, D)`."""
        self.pairs[layer] = (key, value)
        return key, value

    def get_seq_length(self, layer: int = 0) -> int:
        """No keys come before the pass."""
        return 0


class Bucket:
    """A pass at one size.

    Args:
        memory: `(layers, heads, width)` of a memory's keys and values; None without one.

    Attributes:
        graph: replays the pass; None runs it.
    """

    def __init__(
        self,
        lm: PassingModel,
        size: PrefixSize,
        device: torch.device,
        width: int,
        memory: tuple[int, int, int] | None,
    ) -> None:
        self._lm, self.size = lm, size
        self.graph: torch.cuda.CUDAGraph | None = None
        self._out: tuple[Tensor, Tensor] | None = None
        # Tensors of the inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            shape = (size.rows, size.columns)
            content = shape if not size.content.is_floating_point else (*shape, width)
            self._content = torch.zeros(content, dtype=size.content, device=device)
            self._columns = torch.zeros((len(FIELDS), *shape), dtype=torch.long, device=device)
            self._layers = 0
            if memory is not None:
                self._layers, heads, wide = memory
                held = (2, size.rows, self._layers * heads, size.memory, wide)
                self._memory = torch.zeros(held, dtype=size.kept, device=device)
                self._places = torch.zeros((len(FIELDS), size.rows, size.memory), dtype=torch.long, device=device)

    def read(self, prefix: Prefix, reading: Reading) -> tuple[Tensor, DynamicCache]:
        """Logits `(B, V)` for the first token after the prefix, and its keys and values."""
        self.fill(prefix, reading)
        if self.graph is None:
            logits, kept = self.run()
        else:
            self.graph.replay()
            assert self._out is not None
            logits, kept = self._out
        rows, columns = prefix.columns.positions.shape
        # What a graph wrote is overwritten by the next replay.
        return logits[:rows].clone(), cache_of(kept[:, :rows, :, :columns].clone())

    def fill(self, prefix: Prefix, reading: Reading) -> None:
        """Copy the inputs; what is left over is zero and invalid."""
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        _put(self._content, content)
        _put(self._columns, _fields(prefix.columns), 1)
        if reading.memory is not None:
            keys, values = (torch.cat(each, 1) for each in (reading.memory.keys, reading.memory.values))
            if keys.shape[2] < self.size.memory or len(keys) < self.size.rows:
                self._memory.zero_()  # a number that is not finite would not vanish under a weight of zero
            for mine, theirs in zip(self._memory, (keys, values), strict=True):
                mine[: len(theirs), :, : theirs.shape[2]] = theirs
            _put(self._places, _fields(reading.memory.columns), 1)

    def run(self) -> tuple[Tensor, Tensor]:
        """The pass: logits `(B, V)`, and `(2 L, B, H, Q, D)`, the keys of all layers and then the values."""
        columns, memory = _columns(self._columns), None
        if self._layers:
            keys, values = (each.unflatten(1, (self._layers, -1)).unbind(1) for each in self._memory)
            memory = Memory(keys, values, _columns(self._places))
        reading = Reading(columns, self.size.layers, memory, plain=self.size.plain)
        hidden = self._lm.passed(self._content, columns, reading, kept := KeptLayers())
        logits = self._lm.head(hidden[torch.arange(len(hidden), device=hidden.device), columns.last])
        layers = sorted(kept.pairs)
        every = [*(kept.pairs[layer][0] for layer in layers), *(kept.pairs[layer][1] for layer in layers)]
        if layers != list(range(len(layers))) or len({(each.shape, each.dtype) for each in every}) > 1:
            raise ValueError("its layers do not all keep keys and values of one shape")
        return logits, torch.cat(every).unflatten(0, (len(every), -1))

    def capture(self, pool: Any) -> str | None:
        """Capture the pass over what was filled in last; returns why that failed, None if it did not.

        Args:
            pool: where graphs that never run at the same time keep what they compute.
        """
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), _not_waiting():
            wanted, _ = self.run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The default capture stream is created once per process, on the GPU that was current then.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            self._out = self.run()
        graph.replay()
        off = float((self._out[0].float() - wanted.float()).norm() / wanted.float().norm())
        if not off <= TOLERANCES.get(wanted.dtype, 2e-2):
            self._out = None
            return f"a replay's logits are off by {off:.2g}"
        self.graph = graph
        return None

    @property
    def nbytes(self) -> int:
        """Bytes that are held from one call to the next."""
        held = [self._content, self._columns, *((self._memory, self._places) if self._layers else ())]
        return sum(each.nbytes for each in (*held, *(self._out or ())))


@contextmanager
def _not_waiting() -> Iterator[None]:
    """Inside the block, an operation that waits for the device raises: a capture that fails on one would leave the
    GPU's random numbers unusable."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode")  # says PyTorch once a process
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def cache_of(kept: Tensor) -> DynamicCache:
    """A cache of `(2 L, B, H, Q, D)`, whose layers are parts of that tensor."""
    cache, layers = DynamicCache(), len(kept) // 2
    for key, value in zip(kept[:layers], kept[layers:], strict=True):
        layer: Any = DynamicLayer()
        layer.dtype, layer.device, layer.is_initialized = key.dtype, key.device, True
        layer.keys, layer.values = key, value
        cache.layers.append(layer)
    return cache


def _put(target: Tensor, source: Tensor, axis: int = 0) -> None:
    """Copy `source` to the beginning of `target`'s rows and columns, the axes from `axis` on; the rest is zero."""
    rows, columns = source.shape[axis : axis + 2]
    if target.shape[axis : axis + 2] != (rows, columns):
        target.zero_()
    target.narrow(axis, 0, rows).narrow(axis + 1, 0, columns).copy_(source)


def _fields(columns: Columns) -> Tensor:
    return torch.stack([getattr(columns, name).long() for name in FIELDS])


def _columns(fields: Tensor) -> Columns:
    valid, positions, blocks, documents = fields
    return Columns(valid=valid.bool(), positions=positions, blocks=blocks, documents=documents)
