"""What the objectives of one step look at; each part is computed at most once, and only if one asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced
from latentwire.lm.shared import Questions, Shared
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules


class Encoded:
    """The message of B contexts, for all readers of a step.

    other: for each of them another one whose context is of another group.
    """

    def __init__(self, modules: LatentModules, contexts: Sequence[str], other: Sequence[int]) -> None:
        self.modules, self.contexts = modules, contexts
        self._other = other

    @cached_property
    def message(self) -> Latents:
        latents: Latents = self.modules(self.contexts)
        return latents

    @cached_property
    def deranged(self) -> Latents:
        return self.message.select(torch.tensor(self._other, device=self.message.valid.device))


class Evidence:
    """One reader's part of a step; N is the number of answer tokens.

    questions: what it is asked behind each context. text: the contexts as its own tokens.
    """

    def __init__(self, encoded: Encoded, reader: str, lm: LM, questions: Questions, text: Shared) -> None:
        self.encoded, self.reader, self.lm = encoded, reader, lm
        self.questions, self.text = questions, text

    @property
    def message(self) -> Latents:
        return self.encoded.message

    @cached_property
    def student(self) -> Forced:
        """The reader behind the latents: hidden `(N, D)`, labels `(N,)`."""
        return self.questions.forced(self.encoded.modules.deliver(self.message, self.reader), self.lm)

    @cached_property
    def deranged(self) -> Forced:
        """The reader behind another context's latents."""
        return self.questions.forced(self.encoded.modules.deliver(self.encoded.deranged, self.reader), self.lm)

    @cached_property
    def teacher(self) -> Forced:
        """The same reader behind the text itself; nothing flows into it."""
        with torch.no_grad():
            return self.questions.forced(self.text, self.lm)
