"""A model's tokenizer and prompt format without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from latentwire.lm.loading.load_settings import Loading
from latentwire.lm.loading.weights import described
from latentwire.lm.prompt_format import PromptFormat


@dataclass(frozen=True)
class Tokenizing:
    """What turning text into a model's tokens needs; it can be sent to another process.

    Attributes:
        tokenizer: the model's tokenizer.
        format: the prompt format saved beside the model, or the default one.
        name: the model as it was named.
        eos_ids: token ids that end a text.
    """

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat
    name: str
    eos_ids: frozenset[int]

    @classmethod
    def load(cls, spec: str, loading: Loading | None = None) -> Tokenizing:
        """Read it from `embedded:NAME`, a local folder, a `.gguf` file or a hub id, without reading any weights.

        Raises:
            UserError: there is no such model, or its tokenizer is unusable.

        Example:
            >>> Tokenizing.load("embedded:heron").tokenizer("Ada has 12 apples.")["input_ids"]
        """
        files = described(spec, loading)
        eos = files.config.get_text_config().eos_token_id
        ids = [*(eos if isinstance(eos, list) else [eos]), files.tokenizer.eos_token_id]
        return cls(files.tokenizer, files.format, spec, frozenset(token for token in ids if token is not None))
