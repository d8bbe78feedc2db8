"""What a reader reads beside latents: the question, the text too, or the anchor only.

Training and evaluation both use these functions, so that a wire is trained on what it is evaluated with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from latentwire.errors import UserError
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.reader import Tokenizes
from latentwire.lm.scoring.questions import Shared
from latentwire.wires.latent.adapters import Adapter
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents

SAMPLE = "A few words."
"""A context on which every wire is tried when it is built."""


class Words(Tokenizes, Protocol):
    """A tokenizer with a prompt format."""

    @property
    def format(self) -> PromptFormat: ...


@dataclass(frozen=True, eq=False)
class OwnText:
    """B texts as a reader's own tokens.

    Attributes:
        tokens: token ids `(B, T)` with their columns.
        lm: the reader, as it reads the latents.
    """

    tokens: Shared
    lm: LM

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], lm: LM) -> OwnText:
        """From the token ids of each text."""
        return cls(Shared.of_tokens(rows, lm.device), lm)


def asking(
    config: LatentConfig, prompts: Sequence[tuple[str, str]], lm: Words
) -> tuple[list[list[int]] | None, list[list[int]]]:
    """Token ids of the text beside latents, and of what follows the latents, for each prompt.

    Args:
        prompts: pairs of context and question.

    Returns:
        The texts, or None where the layout shows none, and what follows them. Together they are the prompt's own
        tokens, as the reader alone would read them. Where the wire carries whole prompts, the question belongs to
        the text.

    Raises:
        UserError: a prompt has no token, or no anchor where there is nothing else.
    """
    if config.shown == "text":
        pairs = [lm.format.split(*prompt, lm, whole=config.carry == "prompt") for prompt in prompts]
        return [text for text, _ in pairs], [rest for _, rest in pairs]
    if config.shown == "only":
        ending = lm.format.ending(lm)
        return None, [list(ending) for _ in prompts]
    return None, lm.format.after_all([question for _, question in prompts], lm)


def fused(adapter: Adapter, latents: Latents, text: OwnText, counted: Callable[[str], list[int]]) -> Shared:
    """The reader's own keys and values of a text, with latents added; the former get no gradient.

    Args:
        counted: returns the tokens of a text, of which the encoder makes one latent each.

    Raises:
        UserError: the counted tokens are not those of the reader's prompts.
    """
    lm = text.lm
    if counted(SAMPLE) != lm.format.before(SAMPLE, lm):
        raise UserError(
            f"format: found prompts of {lm.name} that begin in another way than its tokens as the encoder aligns "
            "to them, expected the same prompt format."
        )
    ids, columns = text.tokens.content, text.tokens.columns
    assert ids is not None
    assert columns is not None
    with torch.no_grad(), evaluating(lm.model):
        own = lm.memorize(Prefix(ids=ids, columns=columns), torch.float32)[1]
    return Shared(text.tokens.end, adapter.fuse(latents, own))
