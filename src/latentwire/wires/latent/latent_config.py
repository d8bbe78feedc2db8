"""`LatentConfig`: what a latent wire is made of, as a study's YAML writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from latentwire.errors import UserError
from latentwire.lm.prompt_format import PromptFormat
from latentwire.wires.latent.adapters import AdapterKind, NativeConfig
from latentwire.wires.latent.checkpoint import CONFIG
from latentwire.wires.latent.encoders import EncoderKind, SelfConfig
from latentwire.wires.latent.refine import RefinerConfig

Carry = Literal["context", "prompt"]
Layout = Literal["question", "text", "only"]


def _native() -> dict[str, AdapterKind]:
    return {"embedded:heron": NativeConfig()}


class LatentConfig(BaseModel):
    """What a latent wire is made of.

    Attributes:
        source: the encoder's model, on whose device the encoder runs.
        encoder: how a context becomes latents.
        adapters: what makes the latents readable, by the name of the reader (`embedded:heron`, a folder, a hub
            id).
        width: of a latent as it crosses, made by a linear map of all that the encoder gives; None sends that
            itself.
        refiner: layers in which latents, being vectors, see each other before they cross.
        private: how many of a context's latents belong to each reader alone; all readers see the rest.
        carry: what is encoded: the `context` alone, or the whole `prompt`, context and question as the reader's
            format words them, without the anchor. Then each question has its own message, and every table says so.
        layout: what a reader reads beside the latents: the `question`; the context's `text` too, after the
            latents; or the anchor `only`. None lets a training choose, and is `question` where none does.
        positions: where latents stand for the reader: `spread` over the source's span, with the question after all
            of it (EPL, 2409.14364), or `contiguous`, with what follows right after them. None is `contiguous`
            where text follows and `spread` elsewhere.
        bos_after_anchor: whether a reader's BOS token stands between the anchor and the answer.
        fingerprints: of the weights that the wire was trained with, by model; None before training.
        formats: the prompt formats that it was trained with, by model; None before training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "embedded:heron"
    encoder: EncoderKind = SelfConfig()
    width: int | None = Field(default=None, ge=1)
    refiner: RefinerConfig | None = None
    private: int = Field(default=0, ge=0)
    adapters: dict[str, AdapterKind] = Field(default_factory=_native, min_length=1)
    carry: Carry = "context"
    layout: Layout | None = None
    positions: Literal["spread", "contiguous"] | None = None
    bos_after_anchor: bool = False
    fingerprints: dict[str, str] | None = None
    formats: dict[str, PromptFormat] | None = None

    @property
    def shown(self) -> Layout:
        """The layout in use: `question` where none is set."""
        return self.layout or "question"

    @property
    def spread(self) -> bool:
        """Whether latents are spread over the source's span."""
        return self.positions != "contiguous" and self.layout != "text"

    @model_validator(mode="after")
    def _layout_can_be_read(self) -> LatentConfig:
        if self.layout == "only" and self.carry == "context":
            raise ValueError(
                "layout: found only with carry: context, expected carry: prompt, since no reader would see the "
                "question"
            )
        if self.layout == "text" and self.positions == "spread":
            raise ValueError("positions: found spread with layout: text, expected contiguous, since text follows")
        return self

    @model_validator(mode="after")
    def _fused_token_by_token(self) -> LatentConfig:
        for name, adapter in self.adapters.items():
            if adapter.changes_text and self.layout != "text":
                raise ValueError(
                    f"adapters: found {adapter.kind} under layout {self.shown}, expected layout: text, since it "
                    "changes the keys and values of text"
                )
            if adapter.changes_text and self.encoder.token_by_token(self.source) != name:
                raise ValueError(
                    f"encoder: found one that {adapter.kind} cannot follow, expected align: {name} and select: "
                    "{kind: anchors, ratio: 1}, one latent for each of its tokens"
                )
        return self

    @model_validator(mode="after")
    def _private_latents_exist(self) -> LatentConfig:
        needed, count = self.private * len(self.adapters), self.encoder.count
        if needed and count is None:
            raise ValueError(
                f"private: found {self.private} of latents whose number follows the context's length, "
                "expected an encoder with a fixed number of them"
            )
        if count is not None and needed > count:
            raise ValueError(
                f"private: found {self.private} for each of {len(self.adapters)} readers, expected at most the "
                f"{count} latents of the encoder"
            )
        return self


def read_config(folder: Path) -> LatentConfig:
    """The configuration of a saved wire.

    Raises:
        UserError: the folder has none that can be read.

    Example:
        >>> read_config(Path("my-wire")).encoder.kind
        'self'
    """
    try:
        return LatentConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"wire: {folder / CONFIG} is not UTF-8 text, expected a wire's configuration.") from error
    except OSError as error:
        raise UserError(f"wire: {folder} holds no {CONFIG}, expected the folder of a trained wire.") from error
    except ValidationError as error:
        raise UserError(f"wire: {folder / CONFIG} is not a wire's: {error.errors()[0]['msg']}.") from error
