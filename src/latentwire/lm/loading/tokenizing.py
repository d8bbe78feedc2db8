"""A model's tokenizer and prompt format without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from latentwire.lm.loading.weights import described
from latentwire.lm.prompt_format import PromptFormat


@dataclass(frozen=True)
class Tokenizing:
    """What turning words into a model's tokens needs; it can go to another process."""

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    name: str
    eos_ids: frozenset[int]

    @classmethod
    def load(cls, spec: str) -> Tokenizing:
        """Of `embedded:NAME`, a local folder, a `.gguf` file or a hub id. Raises as `weights.described` does."""
        found = described(spec)
        ends = found.config.get_text_config().eos_token_id
        known = [*(ends if isinstance(ends, list) else [ends]), found.tokenizer.eos_token_id]
        return cls(found.tokenizer, found.format, spec, frozenset(each for each in known if each is not None))
