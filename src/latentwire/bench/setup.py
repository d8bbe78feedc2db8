"""What every benchmark is given, and what it gives back."""

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
    """A decoder of random weights. family: Transformers' model type; config: its settings."""

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
}


@dataclass(frozen=True)
class Timing:
    """Of several runs: the middle one, the fastest and the slowest, in seconds; peak_gib: device memory."""

    seconds: float
    low: float
    high: float
    peak_gib: float


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    who: what ran. at: what it ran on (`length`, `batch`, `shape`). figures: what came of it, by name with its
    unit, `seconds` first; None where it does not apply. note: why a figure is missing, or what to know of it.
    """

    who: str
    figures: dict[str, float | None]
    at: dict[str, str | int | float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Setup:
    """Where and on what to measure.

    sweep: also over lengths, batches and shapes, not at the standard point alone.
    only: one part of a benchmark alone, by its name in the benchmark's `PARTS`, or `sweep` without the standard
        point; empty for all.
    precision: of the model; None for float32 on a CPU and bfloat16 elsewhere.
    """

    device: torch.device
    shape: str
    sweep: bool = False
    only: str = ""
    precision: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.precision or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)

    def wants(self, part: str) -> bool:
        if part == "sweep":
            return self.only == "sweep" or (self.sweep and not self.only)
        return self.only in ("", part)

    def model(self, attention: str = "sdpa", **changes: Any) -> PreTrainedModel:
        """A model of random weights of the shape, its settings changed so, on the device, in `dtype`."""
        wanted = SHAPES[self.shape]
        config = CONFIG_MAPPING[wanted.family](**{**wanted.config, **changes})
        torch.manual_seed(0)
        with self.device:
            made: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation=attention
            )
        return made

    def timed(self, run: Callable[[], object], repeats: int = 5, warm: int = 2) -> Timing:
        """Time a call, waiting for the device each time."""
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
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @cached_property
    def flops(self) -> float:
        """Operations a second of a large matrix product in `dtype`, measured here."""
        side = 1024 if self.device.type == "cpu" else 8192
        left = torch.randn(side, side, device=self.device, dtype=self.dtype)
        right = torch.randn_like(left)
        return 2 * side**3 / self.timed(lambda: left @ right, 10, 3).seconds

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second, read and written, of a large copy, measured here."""
        size = 2**27 if self.device.type == "cpu" else 2**31
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.timed(lambda: target.copy_(source), 10, 3).seconds
