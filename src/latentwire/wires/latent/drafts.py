"""A draft: what a source writes behind a context before it is asked what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from pydantic import Field

from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.wires.latent.align import REMEMBERED
from latentwire.wires.latent.encoders.encoder import EncoderConfig

STOP = "\nQuestion:"
"""Where a model that was grown on questions would go on with the next one."""


class Drafting(EncoderConfig):
    """Settings of an encoder whose source may write first.

    draft: the source goes on behind its context, greedily and as it is, without adapters, for up to `draft_tokens`
        tokens; latents are made of the context with what it wrote. Where the whole prompt is carried, that is its
        own answer to the question (Interlat, 2511.09149; LatentMAS, 2511.20639).
    """

    draft: bool = False
    draft_tokens: int = Field(default=64, ge=1)

    @property
    def drafts_text(self) -> bool:
        return self.draft

    def drafts(self, lm: LM) -> Drafts:
        return Drafts(lm, self.draft_tokens if self.draft else 0)


class Drafts:
    """Contexts with their drafts of at most so many tokens, or as they are where that is 0.

    keeps: those of contexts that are met again, as in training.
    """

    def __init__(self, lm: LM, tokens: int) -> None:
        self._lm, self._tokens = lm, tokens
        self._kept: dict[str, str] = {}
        self.keeps = True

    def __bool__(self) -> bool:
        """Whether anything is written."""
        return self._tokens > 0

    def __call__(self, contexts: Sequence[str]) -> Sequence[str]:
        """Each context with the anchor and what the source wrote behind it; one never depends on another."""
        if not self:
            return contexts
        left = [each for each in dict.fromkeys(contexts) if each not in self._kept]
        new = dict(zip(left, self._written(left) if left else [], strict=True))
        drafted = [each + (new[each] if each in new else self._kept[each]) for each in contexts]
        if self.keeps:
            self._kept |= new
            for each in list(islice(self._kept, max(0, len(self._kept) - REMEMBERED))):
                del self._kept[each]
        return drafted

    @torch.no_grad()
    def _written(self, contexts: Sequence[str]) -> list[str]:
        """What stands behind each context: the anchor and the draft."""
        lm, how = self._lm, Decoding(max_new_tokens=self._tokens, stop=(STOP,))
        ending = lm.format.ending(lm)
        rows = [[*lm.format.before(each, lm), *ending] for each in contexts]
        # In the model's own numbers also while something else is trained: a reader gets the same draft later.
        with torch.autocast(lm.device.type, enabled=False):
            said = lm.generate(lm.prefill(Prefix.of_tokens(rows, device=lm.device)), how)
        anchor = str(lm.tokenizer.decode(ending))
        return [f"{anchor}{text.text}" for text in said]
