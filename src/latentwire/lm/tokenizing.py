"""A model's tokenizer and prompt format without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.weights import locate, stored_format


@dataclass(frozen=True)
class Tokenizing:
    """What turning words into a model's tokens needs; it can go to another process."""

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    name: str
    eos_ids: frozenset[int]

    @classmethod
    def load(cls, spec: str) -> Tokenizing:
        """Of `embedded:NAME`, a local folder, a `.gguf` file or a hub id.

        Raises:
            UserError: there is no such model, or no tokenizer.
        """
        source = locate(spec)
        options: dict[str, Any] = {}
        if source.endswith(".gguf") and Path(source).is_file():
            options["gguf_file"], source = Path(source).name, str(Path(source).parent)
        try:
            config = AutoConfig.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"tokenizer: that of {spec} cannot be loaded: {line}") from error
        found = config.get_text_config().eos_token_id
        ends = [*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id]
        prompt_format = PromptFormat() if options else stored_format(source)
        return cls(tokenizer, prompt_format, spec, frozenset(each for each in ends if each is not None))
