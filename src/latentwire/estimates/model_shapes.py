"""Models by their configuration and tokenizer alone: no weights are read, or even downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from transformers import AutoModelForCausalLM

from latentwire.errors import UserError
from latentwire.lm.loading import weights
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.operation_counts import Counts
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.training.wire.asking import Asking
from latentwire.wires.latent.latent_config import LatentConfig


@dataclass(frozen=True)
class ModelShape:
    """A model's sizes, and what turns its prompts into tokens.

    Attributes:
        counts: without adapters.
        parameters: all of them.
        words: tokenizer and prompt format.
    """

    name: str
    counts: Counts
    lora_per_rank: int
    parameters: int
    vocabulary: int
    words: Tokenizing

    def adapted(self, rank: int) -> Counts:
        """The sizes with low-rank adapters on every linear layer."""
        return replace(self.counts, lora=rank * self.lora_per_rank)

    def asking(self, wire: LatentConfig) -> Asking:
        """What makes the tokens of a wire's training data."""
        words = self.words
        return Asking(words.tokenizer, words.format, words.name, words.eos_ids, wire)


def shape(name: str, prompts: Mapping[str, PromptSettings]) -> ModelShape:
    """A model by its name, asked as a study says.

    Raises:
        UserError: there is no such model, or its shape is not known here.
    """
    made = _shape(name)
    settings = prompts.get(name)
    if settings is None:
        return made
    words = made.words
    format_ = settings.over(words.format, words)
    return replace(made, words=replace(words, format=format_))


@lru_cache(maxsize=8)
def _shape(name: str) -> ModelShape:
    described = weights.described(name)
    config = described.config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        counts, one = Counts.of(model), Counts.of(model, 1)
    except (AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"model: the shape of {name} is not known here ({error}), expected a plain decoder."
        ) from error
    return ModelShape(
        name,
        counts,
        one.lora,
        sum(each.numel() for each in model.parameters()),
        config.vocab_size,
        Tokenizing.load(name),
    )
