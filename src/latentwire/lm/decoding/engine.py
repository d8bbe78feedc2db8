"""Runs decoding steps: plainly, as a captured CUDA graph, or compiled and captured.

A graph replays what was there when it was captured. So before every batch the engine checks that the model is
still the same, and it runs plain steps wherever a replay could differ.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latentwire.lm.decoding.decode_step import DecodeStep, Split, advance, bucket
from latentwire.lm.decoding.layerwise import Layerwise, keep_kernels
from latentwire.lm.decoding.merged import Merged, Merging, applied, merge
from latentwire.lm.decoding.slots import Slots, layers_of
from latentwire.lm.masks import attention
from latentwire.lm.prefix import Prefilled

Mode = Literal["plain", "graph", "compiled"]
Attention = Literal["split", "sdpa"]
MORE_ROWS = 4
"""Slots also serve a batch of up to this many times fewer rows: a step reads all weights, however few the rows."""
SPAN = 256
"""The fewest columns that a captured step reads."""
COMPILER: dict[str, str | int | bool | Callable[..., Any]] = {
    "coordinate_descent_tuning": True,
    "triton.cudagraphs": False,
    "triton.enable_pdl": True,
}
"""The first makes a vector-matrix product a reduction, which reads weights nearly as fast as a copy; the last
launches a kernel while the previous one ends, on GPUs that can (Hopper's programmatic dependent launch)."""


class Model(Protocol):
    """What the engine needs of a model; `LM` implements it."""

    model: PreTrainedModel

    @property
    def device(self) -> torch.device: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def head(self, hidden: Tensor) -> Tensor: ...

    def states(self, tokens: Tensor, positions: Tensor, step: DecodeStep) -> Tensor: ...


class Engine:
    """The decoding steps of one model.

    Attributes:
        mode: `plain`; `graph`, the default on a GPU, captured in about a second per size; or `compiled`, fused
            kernels in the graph, which are compiled for each size. A size is (rows, columns), rounded
            up, so that prompts of other lengths rarely need a new one.
        attention: `split`, the default on a GPU: our kernels where they agree with sdpa; or `sdpa`.
        merging: which linear layers are computed as one product while steps are captured (see `merged`); None
            takes the fastest choice that keeps `graph` bit-equal to `plain`.
        compiler: options for steps that are not compiled yet.
        layerwise: whether a compiled step compiles one layer for all of them where our kernels attend; otherwise,
            and where that fails, the step is compiled as a whole, which takes about a minute.
        captures: how many graphs were captured; capture_seconds: how long the last one took, with compiling.
        refused: why steps run plainly although a graph was asked for; None if they do not.
    """

    def __init__(self, lm: Model, mode: Mode | None = None) -> None:
        self.lm = lm
        self.mode: Mode = mode or ("graph" if lm.device.type == "cuda" else "plain")
        self.attention: Attention = "split"
        self.merging: Merging | None = None
        self.compiler = COMPILER
        self.layerwise = True
        self.captures, self.capture_seconds = 0, 0.0
        self.refused: str | None = None
        self._slots: Slots | None = None
        self._eos = self._end_tokens()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._split: Split | None = None
        self._merged: list[Merged] = []
        self._state: tuple[object, ...] = ()
        self._compiled: Callable[..., None] | None = None
        self._by_layer: Layerwise | None = None

    @property
    def slots(self) -> Slots:
        assert self._slots is not None, "open() comes first"
        return self._slots

    @property
    def captured(self) -> bool:
        """Whether steps run as graphs, so that the host need not wait for each of them."""
        return self.mode != "plain" and self.refused is None

    def open(self, like: Prefilled, rows: int, columns: int) -> Slots:
        """Empty slots for at least `rows` rows of `columns` columns."""
        self.refused = None if self.mode == "plain" else unfit(self.lm.model)
        with self._there():
            self._split = splitting(self.lm.model, like) if self.attention == "split" else None
        if not self.captured:
            self.release()
            self._slots, self._eos = Slots(like, rows, columns), self._end_tokens()
            return self._slots
        rows, columns = bucket(rows, 1), bucket(columns, SPAN)
        mine = self._slots
        if (
            mine is None
            or self._now(mine.rows) != self._state
            or not mine.fits(like)
            or mine.capacity < columns
            or not rows <= mine.rows <= MORE_ROWS * rows
        ):
            self.release()
            self._merged = merge(self.lm.model, self._merging(rows))
            self._slots, self._eos = Slots(like, rows, columns), self._end_tokens()
            self._state = self._now(rows)
        self.slots.free(range(self.slots.rows))
        return self.slots

    def grow(self, columns: int) -> None:
        """Make room for rows of `columns` columns; texts in progress are kept."""
        if columns > self.slots.capacity:
            self._graphs.clear()
            self.slots.grow(bucket(columns, SPAN))

    def release(self) -> None:
        """Free slots and graphs, and restore the model."""
        self._slots = None
        self._graphs.clear()
        for group in self._merged:
            group.undo()
        self._merged = []

    def close(self) -> None:
        """Called after every batch: frees what cannot be reused."""
        if not self.captured:
            self.release()

    def steps(self, count: int, longest: int) -> Tensor:
        """Run steps; returns the chosen tokens `(B, count)` on the host.

        Args:
            count: at most `HISTORY`. longest: keys of the longest row, the new ones included.
        """
        with self._there():
            return self._steps(count, longest)

    def _steps(self, count: int, longest: int) -> Tensor:
        slots = self.slots
        slots.cursor.zero_()
        if self.captured:
            # sdpa reads the whole span, so one that follows the texts saves time; our kernels read real keys only.
            whole = self.mode == "compiled" or self._split is not None
            span = slots.capacity if whole else min(slots.capacity, bucket(longest, SPAN))
            graph = self._graphs.get(span) or self._capture(span)
            if graph is not None:
                for _ in range(count):
                    graph.replay()
                return slots.history[:, :count].cpu()
        for _ in range(count):
            self._advance(longest)
        return slots.history[:, :count].cpu()

    def _there(self) -> AbstractContextManager[object]:
        """Make the model's GPU the current one, where graphs are captured and our kernels are launched."""
        device = self.lm.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _end_tokens(self) -> Tensor:
        return torch.tensor(sorted(self.lm.eos_ids), device=self.lm.device, dtype=torch.long)

    def _now(self, rows: int) -> tuple[object, ...]:
        """Everything that a graph of `rows` rows depends on."""
        return (*fingerprint(self.lm.model), self.mode, self.layerwise, self._split, self._merging(rows))

    def _merging(self, rows: int) -> Merging:
        if self.merging is not None:
            return self.merging
        if self.mode != "compiled":
            return "none"
        # For one row the compiler already fuses gate, up and their product into one kernel.
        return "attention" if rows == 1 else "all"

    def _advance(self, span: int, step: Callable[..., None] = advance) -> None:
        with applied(self._merged):
            step(self.lm.states, self.lm.head, self.slots, span, self._eos, self._split)

    def _capture(self, span: int) -> torch.cuda.CUDAGraph | None:
        """A graph of one step, or None with the reason in `refused`."""
        slots = self.slots
        room = slots.room.clone()
        slots.room.zero_()  # rows without room do not change, however often a step is tried
        started = time.perf_counter()
        try:
            for step in (ways := self._ways()):
                try:
                    graph = self._captured(step, span)
                    break
                except Exception as error:  # from the compiler, the driver or the model
                    if step is ways[-1]:
                        raise
                    warnings.warn(f"decoding compiles its step as a whole: {_first_line(error)}", stacklevel=2)
        except Exception as error:  # the plain step always works
            self.refused = _first_line(error)
            warnings.warn(f"decoding runs without a captured graph: {self.refused}", stacklevel=2)
            return None
        finally:
            slots.cursor.zero_()
            slots.room.copy_(room)
        self._graphs[span] = graph
        self.captures += 1
        self.capture_seconds = time.perf_counter() - started
        return graph

    def _captured(self, step: Callable[..., None], span: int) -> torch.cuda.CUDAGraph:
        slots = self.slots
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch._dynamo.config.patch(recompile_limit=64):
            for _ in range(3):
                slots.cursor.zero_()
                self._advance(span, step)
        torch.cuda.current_stream().wait_stream(aside)
        slots.cursor.zero_()
        graph = torch.cuda.CUDAGraph()
        # The default capture stream is created once per process, on the GPU that was current then.
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            self._advance(span, step)
        return graph

    def _ways(self) -> list[Callable[..., None]]:
        """Steps that may be captured, the preferred one first."""
        if self.mode != "compiled":
            return [advance]
        keep_kernels()
        if self._compiled is None:
            self._compiled = torch.compile(advance, fullgraph=True, dynamic=False, options=self.compiler)
        if not (self.layerwise and self._split is not None and attention.kernel(self.lm.model) == "sdpa"):
            return [self._compiled]
        if self._by_layer is None:
            self._by_layer = Layerwise(self.lm.model.get_decoder(), self.compiler)
        return [self._by_layer, self._compiled]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def fingerprint(model: PreTrainedModel) -> tuple[object, ...]:
    """Changes whenever a captured graph would no longer read the memory or run the code of the model."""
    tensors = [*model.parameters(), *model.buffers()]
    return (model.config._attn_implementation, *((tensor.data_ptr(), tensor.dtype) for tensor in tensors))


@cache
def _split_for(device: torch.device, dtype: torch.dtype, heads: int, shared: int, width: int) -> Split | None:
    try:
        from latentwire.lm.decoding import split_attention

        return split_attention.attend if split_attention.agrees(device, dtype, heads, shared, width) else None
    except Exception as error:  # no Triton, or one that cannot compile here; sdpa always works
        warnings.warn(f"decoding attends with sdpa: {type(error).__name__}: {str(error)[:200]}", stacklevel=2)
        return None


def splitting(model: PreTrainedModel, like: Prefilled) -> Split | None:
    """Our attention kernel, if it runs here and agrees with sdpa on keys and values shaped like the prefill's."""
    heads = model.config.get_text_config().num_attention_heads
    # From the keys themselves: some configurations name heads and widths that the model does not have.
    key = layers_of(like)[0][0]
    shared, width = key.shape[1], key.shape[3]
    alone = len({parameter.device for parameter in model.parameters()}) == 1
    if model.device.type != "cuda" or not alone or width < 16 or width & (width - 1):
        return None
    return _split_for(model.device, model.dtype, heads, shared, width)


def unfit(model: PreTrainedModel) -> str | None:
    """Why a captured graph would differ from the model; None if it would not."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return f"{name or 'the model'} has a hook, which a replay would skip"
        if isinstance(module, BaseTunerLayer):
            return f"{name} carries an adapter that can be switched off, which a replay would not notice"
    if model.device.type != "cuda":
        return "the model is not on a GPU"
    if str(model.config._attn_implementation).endswith("flex"):
        return "flex attention makes its mask on the host"
    if len({tensor.device for tensor in model.parameters()}) > 1:
        return "the model stands on several devices"
    return None
