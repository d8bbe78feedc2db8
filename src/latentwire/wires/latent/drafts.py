"""Drafts: what a source writes after a context before its states are taken."""

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
"""Where a model that was trained on questions would begin the next one."""


class Drafting(EncoderConfig):
    """The configuration of an encoder whose source may write before its states are taken.

    Attributes:
        draft: the source continues its context greedily, without adapters, for up to `draft_tokens` tokens;
            latents are made of the context and what it wrote. Where the whole prompt is carried, that is the
            source's own answer to the question (Interlat, 2511.09149; LatentMAS, 2511.20639).
        draft_tokens: the limit.
    """

    draft: bool = False
    draft_tokens: int = Field(default=64, ge=1)

    @property
    def drafts_text(self) -> bool:
        return self.draft

    def drafts(self, lm: LM) -> Drafts:
        return Drafts(lm, self.draft_tokens if self.draft else 0)


class Drafts:
    """Contexts with their drafts; with a limit of 0 tokens, the contexts as they are.

    Attributes:
        keeps: drafts are kept for the next time a context is read, as in training.
    """

    def __init__(self, lm: LM, tokens: int) -> None:
        self._lm, self._tokens = lm, tokens
        self._kept: dict[str, str] = {}
        self.keeps = True

    def __bool__(self) -> bool:
        """Whether anything is written."""
        return self._tokens > 0

    def __call__(self, contexts: Sequence[str]) -> Sequence[str]:
        """Each context with the anchor and what the source wrote after it; one never depends on another."""
        if not self:
            return contexts
        unread = [context for context in dict.fromkeys(contexts) if context not in self._kept]
        new = dict(zip(unread, self._written(unread) if unread else [], strict=True))
        drafted = [context + (new[context] if context in new else self._kept[context]) for context in contexts]
        if self.keeps:
            self._kept |= new
            for context in list(islice(self._kept, max(0, len(self._kept) - REMEMBERED))):
                del self._kept[context]
        return drafted

    @torch.no_grad()
    def _written(self, contexts: Sequence[str]) -> list[str]:
        """What follows each context: the anchor and the draft."""
        lm, how = self._lm, Decoding(max_new_tokens=self._tokens, stop=(STOP,))
        ending = lm.format.ending(lm)
        rows = [[*lm.format.before(context, lm), *ending] for context in contexts]
        # Without autocast also during training: later the reader gets the same draft.
        with torch.autocast(lm.device.type, enabled=False):
            drafts = lm.generate(lm.prefill(Prefix.of_tokens(rows, device=lm.device)), how)
        anchor = str(lm.tokenizer.decode(ending))
        return [f"{anchor}{draft.text}" for draft in drafts]
