"""The parts of `LM` that the modules below it use.

`LM` imports scoring, prompts and the loading probe, so these cannot import `LM`: they name what they need here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.lm.loading.prefix_tuning import PrefixTuning
from latentwire.lm.masks.reading import Columns, Reading
from latentwire.lm.prefix import Forced, Prefilled, Prefix


class Tokenizes(Protocol):
    """What turning text into a model's tokens needs: `LM`, or `Tokenizing`, which has no weights."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def name(self) -> str: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...


class Reader(Protocol):
    """A decoder model with its tokenizer. See `latentwire.lm.model.LM` for what each part does."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    prefix_tuning: PrefixTuning | None

    @property
    def device(self) -> torch.device: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def head(self, hidden: Tensor) -> Tensor: ...

    def run(
        self, content: Tensor, columns: Columns, reading: Reading, cache: DynamicCache | None = None
    ) -> Tensor: ...

    def append(self, prefilled: Prefilled, ids: Tensor, live: Tensor | None = None) -> Prefilled: ...

    def continue_hidden(self, prefilled: Prefilled, ids: Tensor, columns: Columns) -> Tensor: ...

    def forced(self, prefix: Prefix, answer_ids: Tensor) -> Forced: ...
