"""The sizes at which one model reads short prefixes, and when each is captured.

A pass over a few tokens takes as long as Python and the launches of its operations. Padded to a size that
recurs, it is captured once as a CUDA graph and replayed. A size is read the same way before and after it is
captured, so that what a prefix gives does not depend on what was read before it.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from latentwire.lm.decoding.engine import unfit
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import Memory, Reading
from latentwire.lm.operation_counts import Counts
from latentwire.lm.prefilling.bucket import Bucket, PassingModel
from latentwire.lm.prefilling.prefill_sizes import PrefixSize, operations
from latentwire.lm.prefix import Prefix

Mode = Literal["graph", "padded", "off"]
CAPTURED_AT = 2
"""A size is captured when it is read for this time; a single prompt would not pay for it."""
KERNELS = ("sdpa", "eager")
MOST_SIZES = 48
"""How many sizes are kept; the one that was not read for longest goes first."""
MOST_BYTES = 2**30
"""Inputs and results of all sizes together; a size whose memory alone takes more than half is read as it comes."""


class PrefillingModel(PassingModel, Protocol):
    """What is needed of a model; `Decoder` implements it."""

    name: str

    @property
    def device(self) -> torch.device: ...

    @property
    def prefix_tuning(self) -> Any: ...

    def check_ids(self, ids: Tensor) -> None: ...


class PrefillGraphs:
    """Short prefixes of one model.

    Attributes:
        mode: `graph`, the default on a GPU; `padded` reads at the same sizes without capturing them; `off`, the
            default elsewhere, reads every prefix as it comes.
        captures: how many graphs were captured.
        refused: why every prefix is read as it comes although graphs were asked for; None if that is not so.

    Example:
        >>> lm.prefill_graphs.mode = "off"
    """

    def __init__(self, lm: PrefillingModel) -> None:
        self._lm = lm
        self.mode: Mode = "graph" if lm.device.type == "cuda" else "off"
        self.captures = 0
        self.refused: str | None = None
        self._sizes: OrderedDict[PrefixSize, Bucket] = OrderedDict()
        self._seen: Counter[PrefixSize] = Counter()
        self._state: tuple[object, ...] = ()
        self._most_columns = 0.0
        self._pool: Any = None

    def read(self, prefix: Prefix, reading: Reading) -> tuple[Tensor, DynamicCache] | None:
        """Logits and cache of a prefix, or None for one that is to be read as it comes.

        Args:
            reading: of the prefix, its memory rotated.
        """
        if self.mode == "off" or self._lm.prefix_tuning is not None:
            return None
        if torch.is_autocast_enabled(self._lm.device.type) or not self._ready():
            return None
        size = PrefixSize.of(prefix, reading)
        if size.rows * size.columns > self._most_columns or not _fits(reading.memory, size):
            return None
        if prefix.ids is not None:
            self._lm.check_ids(prefix.ids)
        try:
            with self._there():
                return self._read(size, prefix, reading)
        except Exception as error:  # from the driver or the model; reading as it comes always works
            self._refuse(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None

    def release(self) -> None:
        """Free all graphs and what they hold."""
        self._sizes.clear()
        self._seen.clear()
        self._pool = None

    @property
    def nbytes(self) -> int:
        """Bytes that inputs and results of all sizes hold."""
        return sum(bucket.nbytes for bucket in self._sizes.values())

    def _read(self, size: PrefixSize, prefix: Prefix, reading: Reading) -> tuple[Tensor, DynamicCache]:
        bucket = self._sizes.get(size) or self._bucket(size, prefix, reading)
        self._sizes[size] = bucket
        self._sizes.move_to_end(size)
        made = bucket.read(prefix, reading)
        self._seen[size] += 1
        if self.mode == "graph" and bucket.graph is None and self._seen[size] >= CAPTURED_AT:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            if (why := bucket.capture(self._pool)) is not None:
                self._refuse(why)
                return made
            self.captures += 1
        while len(self._sizes) > 1 and (len(self._sizes) > MOST_SIZES or self.nbytes > MOST_BYTES):
            gone, _ = self._sizes.popitem(last=False)
            del self._seen[gone]
        return made

    def _bucket(self, size: PrefixSize, prefix: Prefix, reading: Reading) -> Bucket:
        memory, content = reading.memory, prefix.embeddings
        width = 0 if content is None else content.shape[2]
        shape = None if memory is None else (len(memory.keys), memory.keys[0].shape[1], memory.keys[0].shape[3])
        return Bucket(self._lm, size, self._lm.device, width, shape)

    def _ready(self) -> bool:
        """Whether prefixes can be read at sizes; graphs of a model that has changed are given up."""
        if (state := (self.mode, *state_of(self._lm.model))) != self._state:
            self.release()
            self._state, self.refused = state, self._unfit()
            counts = Counts.of(self._lm.model)
            self._most_columns = operations(self._lm.device) * counts.layers / (2 * counts.body)
        return self.refused is None

    def _unfit(self) -> str | None:
        if (kernel := attention.kernel(self._lm.model)) not in KERNELS:
            return f"the kernel {kernel} looks at its mask on the host"
        return unfit(self._lm.model) if self.mode == "graph" else None

    def _refuse(self, why: str) -> None:
        self.release()
        self.refused = why
        warnings.warn(f"{self._lm.name} reads prefixes without captured graphs: {why}", stacklevel=5)

    def _there(self) -> AbstractContextManager[object]:
        """Make the model's GPU the current one, where graphs are captured."""
        device = self._lm.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _fits(memory: Memory | None, size: PrefixSize) -> bool:
    """Whether a memory can be copied into one tensor of keys and one of values, of moderate size."""
    if memory is None:
        return True
    shapes = {(each.shape, each.dtype) for each in (*memory.keys, *memory.values)}
    key = memory.keys[0]
    wide = 2 * len(memory.keys) * key.shape[1] * key.shape[3] * key.element_size()
    return not memory.heads and len(shapes) == 1 and wide * size.rows * size.memory <= MOST_BYTES / 2


def state_of(model: PreTrainedModel) -> tuple[object, ...]:
    """Changes whenever a captured pass would no longer read the memory or run the code of the model.

    It is asked for before every prefix, so it looks at every module once and makes no names.
    """
    found: list[object] = [model.config._attn_implementation]
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        own = module.__dict__
        hooks = len(own["_forward_hooks"]) + len(own["_forward_pre_hooks"])
        found += (module.__class__, hooks, own.get("forward"), own.get("_hf_hook"))
        for tensor in (*own["_parameters"].values(), *own["_buffers"].values()):
            if tensor is not None:
                found += (tensor.data_ptr(), tensor.dtype)
        waiting += [child for child in own["_modules"].values() if child is not None]
    return tuple(found)
