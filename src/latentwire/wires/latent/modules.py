"""The trained part of a latent wire: one encoder, and an adapter for each reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.files import write_atomically
from latentwire.lm.model import LM
from latentwire.lm.reading import SHARED, Columns, Memory
from latentwire.lm.shared import Shared
from latentwire.wires.latent.adapters import Adapter, Delivered, Native
from latentwire.wires.latent.encoders import Encoder, SelfEncoder
from latentwire.wires.latent.message import Latents

CONFIG, WEIGHTS = "wire.json", "wire.safetensors"


def _native() -> dict[str, Adapter]:
    return {"embedded:heron": Native()}


class LatentConfig(BaseModel):
    """What a latent wire is made of.

    source: the encoder's model. adapters: by reader, the models that read the wire (`embedded:heron`, a folder, a
        hub id). fingerprints: of the weights that the wire was trained with, by model; None before.
    positions: where latents stand for the reader: `spread` over the source's span, with the question behind all
        of it (EPL, 2409.14364), or `contiguous`, with the question right behind them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = "embedded:heron"
    encoder: Encoder = SelfEncoder()
    adapters: dict[str, Adapter] = Field(default_factory=_native, min_length=1)
    positions: Literal["spread", "contiguous"] = "spread"
    fingerprints: dict[str, str] | None = None


class LatentModules(nn.Module):
    """Encoder and adapters of a wire.

    Everything in it that wants a gradient is what the wire has learned, and all of that is saved.

    Args:
        readers: the models that read, by the names in `config.adapters`; those missing get no adapter.
        source: the encoder's model.
    """

    def __init__(self, config: LatentConfig, readers: Mapping[str, LM], source: LM) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build(source)
        with torch.no_grad():
            sample = self.encoder(["A few words."])
        width = sample.flat().shape[-1]
        self.adapters = nn.ModuleDict(
            {key_of(name): config.adapters[name].build(width, lm).to(lm.device) for name, lm in readers.items()}
        )

    def forward(self, contexts: Sequence[str]) -> Latents:
        latents: Latents = self.encoder(contexts)
        return latents

    def deliver(self, latents: Latents, reader: str) -> Shared:
        """What stands before any question about the latents' contexts, for one reader."""
        delivered: Delivered = self.adapters[key_of(reader)](latents)
        columns, end = self._places(latents)
        memory = Memory(delivered.keys, delivered.values, columns) if delivered.keys else None
        soft = delivered.embeddings
        return Shared(end, memory, soft, columns if soft is not None else None)

    def _places(self, latents: Latents) -> tuple[Columns, Tensor]:
        """Columns `(B, M)` of the latents for a reader, and the position `(B,)` of what stands behind them."""
        shared = torch.full_like(latents.positions, SHARED)
        if self.config.positions == "spread":
            return Columns.of(latents.valid, latents.positions, documents=shared), latents.length
        count = latents.valid.long().cumsum(1)
        return Columns.of(latents.valid, (count - 1).clamp_min(0), documents=shared), count[:, -1]

    def trained(self) -> dict[str, Tensor]:
        """Everything that was learned, by name."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def save(self, folder: Path) -> None:
        """Write what was learned into `folder`, as `wire.json` and `wire.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: each.detach().cpu().contiguous() for name, each in self.trained().items()}
        save_file(tensors, folder / WEIGHTS)
        write_atomically(folder / CONFIG, json.dumps(self.config.model_dump(mode="json"), indent=1) + "\n")

    def restore(self, folder: Path) -> None:
        """Take what was learned from `folder`; adapters of readers that are not here stay where they are.

        Raises:
            UserError: a piece is missing, is one too many, has another shape, or is not finite.
        """
        try:
            found = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"wire: {folder / WEIGHTS} cannot be read: {error}.") from error
        absent = tuple(f"adapters.{key_of(name)}." for name in self.config.adapters)
        absent = tuple(each for each in absent if each.split(".")[1] not in self.adapters)
        found = {name: each for name, each in found.items() if not name.startswith(absent)}
        wanted = self.trained()
        for name, each in wanted.items():
            _check_piece(folder, name, each, found.get(name))
        for name in found.keys() - wanted.keys():
            raise UserError(f"wire: {folder} holds {name}, which this wire has no place for.")
        with torch.no_grad():
            for name, each in wanted.items():
                each.copy_(found[name])


def _check_piece(folder: Path, name: str, wanted: Tensor, found: Tensor | None) -> None:
    if found is None:
        raise UserError(f"wire: {folder} lacks {name}, expected every piece that was trained.")
    if found.shape != wanted.shape:
        raise UserError(
            f"wire: {folder}, {name}: found shape {tuple(found.shape)}, expected {tuple(wanted.shape)}."
        )
    if not bool(torch.isfinite(found).all()):
        raise UserError(f"wire: {folder}, {name}: found values that are not finite numbers.")


def fingerprint(lm: LM) -> str:
    """Of a model's weights, as bfloat16 holds them: the same in whatever precision they were loaded."""
    digest = hashlib.sha256()
    for name, each in sorted(lm.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(each.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> LatentConfig:
    """The configuration of a saved wire. Raises `UserError` where there is none that can be read."""
    try:
        return LatentConfig.model_validate_json((folder / CONFIG).read_text())
    except OSError as error:
        raise UserError(f"wire: {folder} holds no {CONFIG}, expected the folder of a trained wire.") from error
    except ValidationError as error:
        raise UserError(f"wire: {folder / CONFIG} is not a wire's: {error.errors()[0]['msg']}.") from error


def key_of(name: str) -> str:
    """A reader's name as a module may be called."""
    return name.replace(".", "·")
