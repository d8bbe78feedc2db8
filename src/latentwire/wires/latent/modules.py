"""`LatentModules`: the trained part of a latent wire, one encoder and an adapter for each reader."""

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
    """The encoder and the adapters of a wire.

    Every parameter that requires a gradient when the wire is built is a piece of the wire: `save` writes all
    pieces and `restore` expects all of them, whatever is frozen in between.

    Args:
        config: what the wire is made of.
        readers: the models that read, by their names in `config.adapters`; readers left out get no adapter.
        source: the encoder's model.

    Raises:
        UserError: an adapter or the refiner cannot read what the encoder gives.

    Example:
        >>> modules = LatentModules(LatentConfig(), {lm.name: lm}, lm)
        >>> latents = modules(["Ada lives in the old town."])
        >>> modules.save(Path("my-wire"))
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
        self._pieces = [name for name, weight in self.named_parameters() if weight.requires_grad]
        self._kept: Collection[str] = ()
        self._absent: dict[str, Tensor] = {}
        models: dict[str, Callable[[], str]] = {
            name: partial(fingerprint, lm) for name, lm in {source.name: source, **readers}.items()
        }
        models |= {f"encoder {name}": digest for name, digest in self.encoder.frozen.items()}
        self._fingerprints = Fingerprints(models)
        self._known = dict(config.fingerprints or {})
        self._formats = {name: lm.format for name, lm in {source.name: source, **readers}.items()}
        self._known_formats = dict(config.formats or {})
        self._rounded = False

    def forward(self, contexts: Sequence[str]) -> Latents:
        """The latents of B contexts, as they cross the wire."""
        latents: Latents = self.refine(self.encoder(contexts))
        return latents

    def _align(self, readers: Mapping[str, LM]) -> None:
        """Let an encoder that counts another model's tokens count them in that model's prompt format."""
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
        """Pad contexts to a multiple of this many columns, where the encoder reads them with a decoder."""
        self.encoder.multiple = multiple

    def recompute(self, recomputes: bool) -> None:
        """Let the layers of an encoder that gradients flow through run again in the backward pass."""
        self.encoder.recompute(recomputes)

    def ahead(self, contexts: Sequence[str]) -> None:
        """Prepare contexts that will be read soon, without a model; may run in another thread."""
        self.encoder.ahead(contexts)

    def deliver(self, latents: Latents, reader: str, text: OwnText | None = None, gain: float = 1.0) -> Shared:
        """What one reader reads before any question about the contexts.

        Args:
            latents: of B contexts. reader: its name in the configuration.
            text: the contexts as the reader's own tokens, which it reads too under layout `text`; None delivers
                the latents alone.
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
        """Token ids between the anchor and an answer: a BOS, or none.

        Raises:
            UserError: `bos_after_anchor` is set and the tokenizer has no BOS.
        """
        if not self.config.bos_after_anchor:
            return []
        if lm.tokenizer.bos_token_id is None:
            raise UserError(f"wire: found bos_after_anchor, but {lm.name} has no such token.")
        return [int(lm.tokenizer.bos_token_id)]

    def _seen(self, latents: Latents, reader: str) -> Latents:
        """The latents without those that are private to other readers."""
        if not self.config.private:
            return latents
        names = list(self.config.adapters)
        seen = seen_by(names.index(reader), len(names), self.config.private, latents.valid.shape[1])
        return columns(latents, seen.to(latents.valid.device))

    def _places(self, latents: Latents) -> tuple[Columns, Tensor]:
        """Columns `(B, M)` of the latents for a reader, and the position `(B,)` after them."""
        shared = torch.full_like(latents.positions, SHARED)
        if self.config.spread:
            return Columns.of(latents.valid, latents.positions, documents=shared), latents.length
        count = latents.valid.long().cumsum(1)
        return Columns.of(latents.valid, (count - 1).clamp_min(0), documents=shared), count[:, -1]

    def add(self, name: str, module: nn.Module) -> None:
        """Make the trainable parameters of a module pieces of the wire, saved and restored with it."""
        self.add_module(name, module)
        self._pieces += [f"{name}.{key}" for key, weight in module.named_parameters() if weight.requires_grad]

    def pieces(self) -> dict[str, Tensor]:
        """Every tensor that belongs to the wire, by name, whether it is being trained or not."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in self._pieces}

    def trained(self) -> dict[str, Tensor]:
        """The pieces that are being trained, by name."""
        return {name: piece for name, piece in self.pieces().items() if piece.requires_grad}

    def freeze_all_but(self, reader: str) -> None:
        """Train this reader's adapter alone, which adds a reader to a finished wire.

        Raises:
            UserError: no such reader, or its adapter has nothing to train.
        """
        own = f"adapters.{key_of(reader)}."
        if not any(name.startswith(own) for name in self._pieces):
            raise UserError(
                f"reader: found {reader!r}, expected a reader of this wire whose adapter can be trained."
            )
        for name, piece in self.pieces().items():
            piece.requires_grad_(name.startswith(own))

    def for_reading(self) -> LatentModules:
        """Prepare this wire, in place, for reading alone: low-rank adapters of a 16-bit model are rounded to 16
        bits, those of a model in float32 on a CPU are added to its weights (`lm.loading.lora.merge`).

        A rounded wire cannot be saved; its folder holds the trained weights.
        """
        self._rounded = self.encoder.round()
        self.encoder.only_read()
        self.keep_drafts(False)  # the cost of a draft is part of the cost of encoding
        return self.eval()

    def keep_drafts(self, keeps: bool) -> None:
        """Whether the draft of a context is kept for the next time, or written each time."""
        self.encoder.keep_drafts(keeps)

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write all pieces and the configuration, with fingerprints of the frozen models.

        Pieces of readers that are not loaded are written as `restore` read them.

        Args:
            folder: is created, or replaced as a whole.
            dtype: what numbers are rounded to, such as bfloat16; None keeps them as they are.

        Raises:
            UserError: neither a reader nor its adapter is loaded, a piece is not finite, or pieces have been
                rounded by `for_reading`.
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
        """Read all pieces from `folder`. Pieces of readers that are not loaded are kept for `save`.

        Args:
            new: readers that the saved wire does not have, or has with another adapter; their pieces stay as they
                are.

        Raises:
            UserError: a piece is missing, unexpected, of another shape or not finite, or the wire was trained for
                other weights than those of the loaded models.
        """
        known, new = read_config(folder), set(new)
        self._check_readers(folder, known, new)
        self._fingerprints.check(folder, known.fingerprints)
        saved, wanted = checkpoint.read(folder), self.pieces()
        away = _prefixes(self._away())
        absent = {name: saved.pop(name) for name in list(saved) if name.startswith(away)}
        wanted = {name: piece for name, piece in wanted.items() if not name.startswith(_prefixes(new))}
        replaced = _prefixes(new & known.adapters.keys())
        saved = {name: piece for name, piece in saved.items() if not name.startswith(replaced)}
        checkpoint.check(folder, saved, wanted)
        with torch.no_grad():
            for name, piece in wanted.items():
                piece.copy_(saved[name])
        self._kept, self._absent = known.adapters.keys(), absent
        self._known = {**(known.fingerprints or {}), **self._known}
        self._known_formats = {**(known.formats or {}), **self._known_formats}

    def _away(self) -> list[str]:
        """The configuration's readers that are not loaded."""
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
                "which are divided among its readers when it is trained."
            )


def _prefixes(readers: Collection[str]) -> tuple[str, ...]:
    return tuple(f"{of}.{key_of(name)}." for name in readers for of in ("adapters", "readers"))


def key_of(name: str) -> str:
    """A reader's name as the name of a submodule: without a dot, and unlike any method of modules (`half`)."""
    return "@" + name.replace(".", "·")
