"""The trained part of a latent wire: one encoder, and an adapter for each reader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.masks.reading import SHARED, Columns, Memory
from latentwire.lm.model import LM
from latentwire.lm.scoring.questions import Shared
from latentwire.wires.latent import checkpoint
from latentwire.wires.latent.adapters import Adapter, Delivered
from latentwire.wires.latent.checkpoint import CONFIG, WEIGHTS
from latentwire.wires.latent.encoders import Encoder
from latentwire.wires.latent.fingerprints import Fingerprints, fingerprint
from latentwire.wires.latent.latent_config import LatentConfig, read_config
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.reader_text import SAMPLE, OwnText, fused
from latentwire.wires.latent.refine import Refiner, columns, seen_by

__all__ = ["CONFIG", "WEIGHTS", "LatentConfig", "LatentModules", "fingerprint", "read_config"]


class LatentModules(nn.Module):
    """Encoder and adapters of a wire.

    Every parameter in it that wants a gradient when it is made is a piece of the wire: `save` writes all pieces
    and `restore` wants all of them back, whatever is frozen in between.

    Args:
        readers: the models that read, by the names in `config.adapters`; those missing get no adapter.
        source: the encoder's model.

    Raises:
        UserError: an adapter or a refiner that cannot read what the encoder gives.
    """

    def __init__(self, config: LatentConfig, readers: Mapping[str, LM], source: LM) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder = config.encoder.build(source)
        self._align(readers)
        with torch.no_grad():
            sample: Latents = self.encoder([SAMPLE])
        self.refine = Refiner(sample, config.width, config.refiner).to(source.device)
        with torch.no_grad():
            sample = self.refine(sample)
        self.adapters = nn.ModuleDict(
            {key_of(name): config.adapters[name].fitted(sample, lm).to(lm.device) for name, lm in readers.items()}
        )
        self._devices = {name: lm.device for name, lm in readers.items()}
        with torch.no_grad():
            for name, lm in readers.items():
                self.deliver(sample, name, OwnText.of([lm.format.before(SAMPLE, lm)], lm))
        self._pieces = [name for name, each in self.named_parameters() if each.requires_grad]
        self._kept: Collection[str] = ()
        self._absent: dict[str, Tensor] = {}
        models: dict[str, Callable[[], str]] = {
            name: partial(fingerprint, lm) for name, lm in {source.name: source, **readers}.items()
        }
        models |= {f"encoder {name}": each for name, each in self.encoder.frozen.items()}
        self._fingerprints = Fingerprints(models)
        self._known = dict(config.fingerprints or {})
        self._formats = {name: lm.format for name, lm in {source.name: source, **readers}.items()}
        self._known_formats = dict(config.formats or {})
        self._rounded = False

    def forward(self, contexts: Sequence[str]) -> Latents:
        latents: Latents = self.refine(self.encoder(contexts))
        return latents

    def _align(self, readers: Mapping[str, LM]) -> None:
        """Let an encoder that counts another model's tokens see them as that model's prompts begin."""
        name = self.config.encoder.counts_tokens_of
        if name is None:
            return
        trained = (self.config.formats or {}).get(name)
        if form := readers[name].format if name in readers else trained:
            self.encoder.align_to(form)

    def adapter(self, reader: str) -> Adapter:
        """The adapter of a reader, by its name in the configuration."""
        return cast(Adapter, self.adapters[key_of(reader)])

    def pad_to(self, multiple: int) -> None:
        """Pad contexts to a multiple of columns, where the encoder reads them with a decoder."""
        self.encoder.multiple = multiple

    def ahead(self, contexts: Sequence[str]) -> None:
        """Do for contexts that will be read soon what needs no model; another thread may."""
        self.encoder.ahead(contexts)

    def deliver(self, latents: Latents, reader: str, text: OwnText | None = None, gain: float = 1.0) -> Shared:
        """What stands before any question about the latents' contexts, for one reader.

        Args:
            text: what the reader reads besides, under layout `text`; None gives the latents alone.
            gain: a factor on soft tokens, and on the values of keys and values.

        Raises:
            UserError: no text, or a gain, for an adapter that changes what the reader has of the text.
        """
        seen, adapter = self._seen(latents, reader).to(self._devices[reader]), self.adapter(reader)
        if gain != 1.0 and self.config.adapters[reader].changes_text:
            kind = self.config.adapters[reader].kind
            raise UserError(f"gain: found {gain:g} with the adapter {kind}, expected 1: it has gates of its own.")
        if text is not None and self.config.adapters[reader].changes_text:
            return fused(adapter, seen, text, self.encoder.counted)
        delivered: Delivered = adapter(seen)
        if gain != 1.0:
            delivered = delivered.scaled(gain)
        places, end = self._places(seen)
        memory = Memory(delivered.keys, delivered.values, places, delivered.heads) if delivered.keys else None
        soft = delivered.embeddings
        shared = Shared(end, memory, soft, places if soft is not None else None)
        if text is None or self.config.shown != "text":
            return shared
        return shared.followed(text.tokens, text.lm)

    def after_anchor(self, lm: LM) -> list[int]:
        """Token ids between the anchor and an answer. Raises `UserError` where a BOS is asked for and lacking."""
        if not self.config.bos_after_anchor:
            return []
        if lm.tokenizer.bos_token_id is None:
            raise UserError(f"wire: found bos_after_anchor, but {lm.name} has no such token.")
        return [int(lm.tokenizer.bos_token_id)]

    def _seen(self, latents: Latents, reader: str) -> Latents:
        """Without the private latents of other readers."""
        if not self.config.private:
            return latents
        names = list(self.config.adapters)
        seen = seen_by(names.index(reader), len(names), self.config.private, latents.valid.shape[1])
        return columns(latents, seen.to(latents.valid.device))

    def _places(self, latents: Latents) -> tuple[Columns, Tensor]:
        """Columns `(B, M)` of the latents for a reader, and the position `(B,)` of what stands behind them."""
        shared = torch.full_like(latents.positions, SHARED)
        if self.config.spread:
            return Columns.of(latents.valid, latents.positions, documents=shared), latents.length
        count = latents.valid.long().cumsum(1)
        return Columns.of(latents.valid, (count - 1).clamp_min(0), documents=shared), count[:, -1]

    def add(self, name: str, module: nn.Module) -> None:
        """Make what a module wants to learn a part of the wire, saved and restored with it."""
        self.add_module(name, module)
        self._pieces += [f"{name}.{key}" for key, each in module.named_parameters() if each.requires_grad]

    def pieces(self) -> dict[str, Tensor]:
        """Everything that belongs to the wire, by name, whether it is being trained or not."""
        found = dict(self.named_parameters())
        return {name: found[name] for name in self._pieces}

    def trained(self) -> dict[str, Tensor]:
        """What is being trained, by name."""
        return {name: each for name, each in self.pieces().items() if each.requires_grad}

    def freeze_all_but(self, reader: str) -> None:
        """Train this reader's adapter alone: how a finished wire gets one more reader.

        Raises:
            UserError: no such reader, or its adapter has nothing to train.
        """
        own = f"adapters.{key_of(reader)}."
        if not any(name.startswith(own) for name in self._pieces):
            raise UserError(
                f"reader: found {reader!r}, expected a reader of this wire whose adapter can be trained."
            )
        for name, each in self.pieces().items():
            each.requires_grad_(name.startswith(own))

    def for_reading(self) -> LatentModules:
        """This wire (not a copy), from now on for reading alone: adapters of a model of 16 bits are rounded to it.

        A rounded wire is not saved again: its folder holds what training left.
        """
        self._rounded = self.encoder.round()
        self.keep_drafts(False)  # what a draft costs is part of what encoding costs
        return self.eval()

    def keep_drafts(self, keeps: bool) -> None:
        """Whether drafts of contexts that are met again are kept, or written each time."""
        self.encoder.keep_drafts(keeps)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write all pieces and the configuration, with fingerprints of the frozen models.

        Pieces of readers that are not here are written as `restore` found them.

        Args:
            dtype: what numbers are rounded to, such as bfloat16 for a wire that ships.

        Raises:
            UserError: a reader is not here and neither is its adapter, a piece is not finite, or pieces have been
                rounded `for_reading`.
        """
        if self._rounded:
            raise UserError(
                "wire: found adapters rounded for reading, expected those that were trained: copy the folder "
                "that the wire was loaded from."
            )
        lacking = [name for name in self._away() if name not in self._kept]
        if lacking:
            raise UserError(f"wire: found no adapter for {lacking[0]}, expected one for every reader it names.")
        known = {"fingerprints": self._fingerprints.filled(self._known)}
        config = self.config.model_copy(update={**known, "formats": {**self._known_formats, **self._formats}})
        checkpoint.write(folder, config, {**self._absent, **self.pieces()}, dtype)

    def restore(self, folder: Path, *, new: Collection[str] = ()) -> None:
        """Take all pieces from `folder`; those of readers that are not here are kept for `save`.

        Args:
            new: readers that the saved wire did not have, or with another adapter; theirs stay as they are.

        Raises:
            UserError: a piece is missing, is one too many, has another shape, or is not finite; the wire was
                trained for other weights than those here.
        """
        known, new = read_config(folder), set(new)
        self._check_readers(folder, known, new)
        self._fingerprints.check(folder, known.fingerprints)
        found, wanted = checkpoint.read(folder), self.pieces()
        away = _prefixes(self._away())
        absent = {name: found.pop(name) for name in list(found) if name.startswith(away)}
        wanted = {name: each for name, each in wanted.items() if not name.startswith(_prefixes(new))}
        replaced = _prefixes(new & known.adapters.keys())
        found = {name: each for name, each in found.items() if not name.startswith(replaced)}
        checkpoint.check(folder, found, wanted)
        with torch.no_grad():
            for name, each in wanted.items():
                each.copy_(found[name])
        self._kept, self._absent = known.adapters.keys(), absent
        self._known = {**(known.fingerprints or {}), **self._known}
        self._known_formats = {**(known.formats or {}), **self._known_formats}

    def _away(self) -> list[str]:
        return [name for name in self.config.adapters if key_of(name) not in self.adapters]

    def _check_readers(self, folder: Path, known: LatentConfig, new: Collection[str]) -> None:
        for name in new:
            if name not in self.config.adapters or known.adapters.get(name) == self.config.adapters[name]:
                raise UserError(
                    f"reader: found {name!r} as new to {folder}, expected one that only this wire has."
                )
        if new and known.private:
            raise UserError(
                f"private: found a new reader for {folder}, expected a wire without private latents, "
                "which are shared out once and for all."
            )


def _prefixes(readers: Collection[str]) -> tuple[str, ...]:
    return tuple(f"{of}.{key_of(name)}." for name in readers for of in ("adapters", "readers"))


def key_of(name: str) -> str:
    """A reader's name as a module may be called: without a dot, and unlike any method of modules (`half`)."""
    return "@" + name.replace(".", "·")
