"""`Tokenizes`: what turning text into a model's tokens needs of it."""

from __future__ import annotations

from typing import Protocol

from transformers import PreTrainedTokenizerBase


class Tokenizes(Protocol):
    """What turning text into a model's tokens needs: `LM`, or `Tokenizing`, which has no weights."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def name(self) -> str: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...
