"""What a latent wire is made of, as a study's YAML writes it."""

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

    source: the encoder's model, and its device. adapters: by reader, the models that read the wire
        (`embedded:heron`, a folder, a hub id). fingerprints: of the weights that the wire was trained with, by
        model; None before. formats: the prompt formats that it was trained with, by model; None before.
    width: of a latent as it crosses, made by a linear map of all that the encoder gives; None sends that itself.
    refiner: layers in which latents, being vectors, see each other before they cross.
    private: so many of a context's latents are each reader's own; the rest is seen by all.
    carry: what is encoded: the `context` alone, or the whole `prompt`, context and question as the readers' format
        words them, without the anchor. Then every question has a message of its own, which every table says.
    layout: what a reader gets beside the latents: the `question`; the context's `text` too, behind the latents;
        or the anchor `only`. Where none is set, a training may choose (`training.fit.layout`), else `question`.
    positions: where latents stand for the reader: `spread` over the source's span, with the question behind all
        of it (EPL, 2409.14364), or `contiguous`, with what follows right behind them; None is `contiguous` where
        text follows and `spread` elsewhere.
    bos_after_anchor: whether a reader's BOS token stands between the anchor and the answer.
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
        """The layout: `question` where none is set."""
        return self.layout or "question"

    @property
    def spread(self) -> bool:
        """Whether latents stand over the source's span."""
        return self.positions != "contiguous" and self.layout != "text"

    @model_validator(mode="after")
    def _layout_can_be_read(self) -> LatentConfig:
        if self.layout == "only" and self.carry == "context":
            raise ValueError(
                "layout: found only beside carry: context, expected carry: prompt, since nobody would be told "
                "the question"
            )
        if self.layout == "text" and self.positions == "spread":
            raise ValueError("positions: found spread under layout text, expected contiguous, since text follows")
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
    """The configuration of a saved wire. Raises `UserError` where there is none that can be read."""
    try:
        return LatentConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"wire: {folder / CONFIG} is not UTF-8 text, expected a wire's configuration.") from error
    except OSError as error:
        raise UserError(f"wire: {folder} holds no {CONFIG}, expected the folder of a trained wire.") from error
    except ValidationError as error:
        raise UserError(f"wire: {folder / CONFIG} is not a wire's: {error.errors()[0]['msg']}.") from error
