"""`Latent`: a trained latent wire, as evaluation sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import PrivateAttr

from latentwire.errors import UserError
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt
from latentwire.wires.base import Message, Wire
from latentwire.wires.latent import message
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentConfig, LatentModules, fingerprint, read_config

if TYPE_CHECKING:
    from latentwire.lm.model import LM


class Latent(Wire):
    """Contexts as latents, encoded without the question.

    path: the folder of a trained wire, or `embedded:NAME`. control: what is done to the message on its way:
        `zero`, `mean`, or `8bit`, `6bit`, `4bit` (really quantized).
    """

    kind: Literal["latent"] = "latent"
    path: str
    control: Literal["zero", "8bit", "6bit", "4bit"] | None = None
    _modules: LatentModules | None = PrivateAttr(None)
    _reader: str = PrivateAttr("")

    def bind(self, lm: LM) -> Self:
        """Load the wire for a reader.

        Raises:
            UserError: no such wire, pieces missing, or trained for other models.
        """
        folder = locate(self.path)
        config = read_config(folder)
        if lm.name not in config.adapters:
            raise UserError(f"wire: {self.path} is read by {', '.join(config.adapters)}, found {lm.name}.")
        modules = LatentModules(config, {lm.name: lm}, source_of(config.source, lm))
        modules.restore(folder)
        _check_fingerprint(self.path, config, lm)
        bound = self.model_copy()
        bound._modules, bound._reader = modules.eval(), lm.name
        return bound

    @torch.no_grad()
    def encode(self, contexts: Sequence[str]) -> Message:
        assert self._modules is not None, "bind the wire to its reader first"
        latents: Latents = self._modules(contexts)
        if self.control == "zero":
            return message.zero(latents)
        return message.quantize(latents, int(self.control[0])) if self.control else latents

    @torch.no_grad()
    def deliver(self, message: Message, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        assert self._modules is not None, "bind the wire to its reader first"
        assert isinstance(message, Latents)
        shared = self._modules.deliver(message, self._reader)
        return shared.ask([lm.format.behind(prompt.question, lm) for prompt in prompts], lm)


def _check_fingerprint(path: str, config: LatentConfig, lm: LM) -> None:
    known = (config.fingerprints or {}).get(lm.name)
    if known is not None and known != fingerprint(lm):
        raise UserError(f"wire: {path} was trained for other weights than those of {lm.name}.")


def locate(path: str) -> Path:
    """The folder of a wire: one that ships with the package, or one's own."""
    from latentwire import models

    return models.folder(path.removeprefix("embedded:")) if path.startswith("embedded:") else Path(path)


def source_of(name: str, lm: LM) -> LM:
    """The encoder's model: the reader itself where it is the same."""
    from latentwire.lm.model import LM as Model

    return lm if lm.name == name else Model.load(name, dtype=lm.model.dtype, device=str(lm.device))
