"""The setup that every benchmark takes and the rows that it returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A decoder with random weights.

    Attributes:
        family: Transformers' model type.
        config: its settings.
    """

    family: str
    config: dict[str, Any]


SHAPES = {
    "tiny": Shape(
        "llama",
        {
            "vocab_size": 4096,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "1b": Shape(
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "3b": Shape(
        "ministral3",
        {
            "vocab_size": 131_072,
            "hidden_size": 3072,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "8b": Shape(
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
    ),
    "14b": Shape(
        "ministral3",
        {
            "vocab_size": 131_072,
            "hidden_size": 5120,
            "intermediate_size": 16_384,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
    ),
}


@dataclass(frozen=True)
class Timing:
    """How long several runs took.

    Attributes:
        seconds: the median.
        low, high: the fastest and the slowest run, in seconds.
        peak_gib: the most device memory in use, in GiB; 0 on a CPU.
    """

    seconds: float
    low: float
    high: float
    peak_gib: float


@dataclass(frozen=True)
class BenchRow:
    """One line of a benchmark's table.

    Attributes:
        who: what ran.
        figures: measurements by name, units in the name, `seconds` first; None where one does not apply.
        at: what it ran on: `length`, `batch`, `shape` and so on.
        note: why a figure is missing, or what a reader must know about it.
    """

    who: str
    figures: dict[str, float | None]
    at: dict[str, str | int | float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """What to measure, and on which device.

    Attributes:
        device: where the model runs.
        shape: a key of `SHAPES`.
        sweep: whether to measure other lengths, batches and shapes too.
        only: one part of a benchmark, by its name in `PARTS`, or `sweep` alone; empty for all parts.
        precision: of the model; None is float32 on a CPU and bfloat16 on an accelerator.
    """

    device: torch.device
    shape: str
    sweep: bool = False
    only: str = ""
    precision: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model and of what is measured."""
        return self.precision or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)

    def wants(self, part: str) -> bool:
        """Whether a part, or the `sweep`, is to be measured."""
        if part == "sweep":
            return self.only == "sweep" or (self.sweep and not self.only)
        return self.only in ("", part)

    def model(self, attention: str = "sdpa", **changes: Any) -> PreTrainedModel:
        """A model with random weights, of the setup's shape, device and dtype; `changes` replace its settings."""
        wanted = SHAPES[self.shape]
        config = CONFIG_MAPPING[wanted.family](**{**wanted.config, **changes})
        torch.manual_seed(0)
        with self.device:
            made: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation=attention
            )
        return made

    def timed(self, run: Callable[[], object], repeats: int = 5, warm: int = 2) -> Timing:
        """Time `repeats` calls after `warm` others, each until the device is done."""
        for _ in range(warm):
            run()
        self.wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            run()
            self.wait()
            seconds.append(time.perf_counter() - started)
        seconds.sort()
        peak = torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else 0.0
        return Timing(seconds[len(seconds) // 2], seconds[0], seconds[-1], peak)

    def wait(self) -> None:
        """Return once the device has done everything that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @cached_property
    def flops(self) -> float:
        """Floating-point operations per second of a large matrix product in `dtype`, measured."""
        side = 1024 if self.device.type == "cpu" else 8192
        left = torch.randn(side, side, device=self.device, dtype=self.dtype)
        right = torch.randn_like(left)
        return 2 * side**3 / self.timed(lambda: left @ right, 10, 3).seconds

    @cached_property
    def bandwidth(self) -> float:
        """Bytes per second, read and written, of a large copy, measured."""
        size = 2**27 if self.device.type == "cpu" else 2**31
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.timed(lambda: target.copy_(source), 10, 3).seconds
