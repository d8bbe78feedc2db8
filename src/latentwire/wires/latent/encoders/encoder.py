"""`EncoderConfig` and `Encoder`: what all encoders have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from latentwire.errors import UserError
from latentwire.kinds import Kind
from latentwire.lm.model import LM
from latentwire.lm.prompt_format import PromptFormat
from latentwire.wires.latent.message import Latents


class Encoder(nn.Module, ABC):
    """A module that turns B contexts into `Latents`; those of one context never depend on another's.

    Attributes:
        frozen: by name, the models that it uses and does not save, each with a function that computes the
            fingerprint of its weights.
        multiple: contexts are padded to a multiple of this many columns, where a decoder reads them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: dict[str, Callable[[], str]] = {}
        self.multiple = 1

    @abstractmethod
    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts, M each."""

    def read(self, contexts: Sequence[str]) -> Any:
        """What is computed of contexts before anything is trained, for `translate`; the contexts by default."""
        return contexts

    def translate(self, read: Any) -> Latents:
        """The latents of what `read` returned."""
        latents: Latents = self(read)
        return latents

    def align_to(self, form: PromptFormat) -> None:
        """Count another model's tokens as in prompts of this format (`EncoderConfig.counts_tokens_of`)."""

    def recompute(self, recomputes: bool) -> None:
        """Whether a decoder's layers keep their input only and run again in the backward pass."""

    def compile_layers(self, compiles: bool) -> None:
        """Whether a decoder that gradients flow through runs compiled layers."""

    def ahead(self, contexts: Sequence[str]) -> None:
        """Prepare contexts that will be read soon, without a model; may run in another thread."""

    def counted(self, context: str) -> list[int]:
        """Token ids of a context, of which each becomes one latent (`EncoderConfig.token_by_token`).

        Raises:
            UserError: the encoder makes latents of something else than tokens.
        """
        raise UserError(f"encoder: {type(self).__name__} counts no tokens, expected the encoder self or source.")

    def round(self) -> bool:
        """Give what was trained the dtype of a 16-bit model; returns whether anything was rounded."""
        return False

    def only_read(self) -> None:
        """Prepare, in place, for reading alone, such that latents change by rounding of float32 at most."""

    def keep_drafts(self, keeps: bool) -> None:
        """Whether drafts of contexts are kept for the next time, where the encoder writes drafts."""


class EncoderConfig(Kind, ABC):
    """The configuration of an encoder: a `kind`, its options, and `build`."""

    @abstractmethod
    def build(self, source: LM) -> Encoder:
        """The module.

        Args:
            source: the wire's source model. Its weights are frozen and shared: `source.twin()` gives a copy to
                which adapters can be added.

        Raises:
            UserError: a setting that does not fit the model.
        """

    @property
    def count(self) -> int | None:
        """How many latents every context becomes; None where that depends on its length."""
        return None

    @property
    def described(self) -> str:
        """The encoder, for an error message."""
        return f"the encoder {self.kind}"

    @property
    def drafts_text(self) -> bool:
        """Whether latents also stand for text that the source wrote itself (`Drafting`)."""
        return False

    @property
    def counts_tokens_of(self) -> str | None:
        """The other model whose tokens are counted (`align`); None for the encoder's own."""
        return None

    def token_by_token(self, source: str) -> str | None:
        """The model of whose tokens each becomes one latent; None where that holds for no model.

        Args:
            source: name of the wire's source model.
        """
        return None


class FixedCount(EncoderConfig):
    """An encoder that makes the same number of vectors of every context.

    Attributes:
        latents: M, how many. width: of each.
    """

    latents: int = Field(default=32, ge=1)
    width: int = Field(default=256, ge=1)

    @property
    def count(self) -> int | None:
        return self.latents


class Pooling(FixedCount):
    """An encoder that pools states with learned queries.

    Attributes:
        heads: attention heads of the pooling. pool_layers: how often the queries attend to the states.
    """

    heads: int = Field(default=8, ge=1)
    pool_layers: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _heads_fit(self) -> Pooling:
        if self.width % self.heads:
            raise ValueError(
                f"width: found {self.width} with {self.heads} heads, expected a multiple of the heads"
            )
        return self
