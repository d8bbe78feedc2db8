"""A tokenizer from its files: by the class that the files say, or word for word where they say all of it."""

from __future__ import annotations

from os import PathLike
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

WHOLE = "TokenizersBackend"
"""The class of a tokenizer that is its `tokenizer.json` and nothing else; Transformers 5 writes it."""


def read(source: str | PathLike[str], **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a hub id.

    For some kinds of models (qwen2 is one) `AutoTokenizer` takes the kind's own class whatever the files say. It
    adds tokens that the vocabulary lacks and splits texts in its own way, so that a model with another tokenizer
    would not be read with what was saved beside it. Files that name the class `WHOLE` are read word for word.

    Args:
        source: the folder or hub id.
        options: `revision`, `trust_remote_code` and others of `from_pretrained`.

    Raises:
        Exception: whatever Transformers raises for files that are no tokenizer.

    Example:
        >>> read("my-model", trust_remote_code=False)
    """
    where = {key: value for key, value in options.items() if key == "revision"}
    settings = get_tokenizer_config(source, **where)
    generic = settings.get("tokenizer_class") == WHOLE and "auto_map" not in settings
    kind: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(source, **options)
    return tokenizer
