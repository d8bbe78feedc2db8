"""`LatentWireBase`: what wires share that send latents, and `Latent`: a trained one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args
from weakref import WeakValueDictionary

import torch
from pydantic import PrivateAttr

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt
from latentwire.wires.latent.average import Average
from latentwire.wires.latent.latent_config import LatentConfig
from latentwire.wires.latent.message import Latents, quantize, zero
from latentwire.wires.latent.modules import CONFIG, LatentModules, read_config
from latentwire.wires.latent.reader_text import OwnText, asking
from latentwire.wires.latent.trained_readers import restore
from latentwire.wires.wire import Message, Wire

if TYPE_CHECKING:
    from latentwire.lm.model import LM
    from latentwire.lm.prompt_format import PromptFormat

Control = Literal["zero", "mean", "8bit", "6bit", "4bit"]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""What can be done to latents on their way."""
BEST = Path("checkpoints", "best")
"""Where a run keeps the wire that it trained."""
_SOURCES: WeakValueDictionary[tuple[str, torch.dtype, str], LM] = WeakValueDictionary()
"""By name, and by dtype and device of the reader. Weak: memory is free again once no wire holds the source."""


class LatentWireBase(Wire):
    """Contexts as latents, encoded without the question unless the wire carries whole prompts.

    control: what is done to the message on its way, written `WIRE:CONTROL`: `zero`, as many latents of nothing
        but zeros, which an adapter reads like any others (only `fuse` makes of them the text alone); `mean`, the
        average of the latents of other contexts, place by place (`Average`); `8bit`, `6bit`, `4bit` (really
        quantized).
    """

    control: Control | None = None
    _modules: LatentModules | None = PrivateAttr(None)
    _reader: str = PrivateAttr("")
    _average: Average | None = PrivateAttr(None)
    _akin: dict[str, str] = PrivateAttr(default_factory=dict)

    @abstractmethod
    def latents(self, contexts: Sequence[str]) -> Latents:
        """What crosses for these contexts, if nothing is done to it on its way."""

    @torch.no_grad()
    def sampled(self, contexts: Sequence[str], akin: Mapping[str, str] | None = None) -> Self:
        """This wire, its `mean` that of these contexts; see `Average.of` for what is raised."""
        if self.control != "mean":
            return self
        met = self.model_copy()
        met._average = Average.of(self.latents, contexts)
        met._akin = {**(akin or {}), **{each: each for each in contexts}}
        return met

    @torch.no_grad()
    def encode(self, contexts: Sequence[str]) -> Message:
        found = self.latents(contexts)
        if self.control == "zero":
            return zero(found)
        if self.control == "mean":
            assert self._average is not None, "let the wire meet a sample first"
            akin = [self._akin.get(each, each) for each in contexts]
            return self._average.instead_of(found, akin, found if akin == list(contexts) else self.latents(akin))
        return quantize(found, int(self.control[0])) if self.control else found

    @torch.no_grad()
    def deliver(self, message: Message, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        assert isinstance(message, Latents)
        texts, asked = asking(self.modules.config, [(each.context, each.question) for each in prompts], lm)
        text = OwnText.of(texts, lm) if texts is not None else None
        after = self.modules.after_anchor(lm)
        behind = [ids + after for ids in asked]
        shared = self.modules.deliver(message, self._reader, text)
        if shared.content is None and not all(behind):
            raise UserError(
                "wire: found nothing behind a context that crosses as keys and values, expected a question (a "
                "benchmark's own prompt is all context), or an adapter that gives embeddings."
            )
        return shared.ask(behind, lm)

    def carried(self, prompts: Sequence[Prompt], lm: LM) -> list[str]:
        if not self.question_aware:
            return super().carried(prompts, lm)
        sent = [prompt.sent or prompt for prompt in prompts]
        return [lm.format.body(each.context, each.question) for each in sent]

    @property
    def compresses(self) -> bool:
        return self.control is None  # a control's costs are those of the wire itself

    @property
    def modules(self) -> LatentModules:
        """Encoder and adapters, once the wire is bound."""
        assert self._modules is not None, "bind the wire to its reader first"
        return self._modules

    @property
    def label(self) -> str:
        return self.plain_label + (f":{self.control}" if self.control else "")

    @property
    def plain_label(self) -> str:
        """The wire as the command line writes it without its control."""
        return self._written({"kind", "control"})


class Latent(LatentWireBase):
    """A trained wire. path: the folder of one, the run that trained it, or `embedded:NAME`."""

    kind: Literal["latent"] = "latent"
    path: str
    _learned: LM | None = PrivateAttr(None)

    def bind(self, lm: LM) -> Self:
        """Load the wire for a reader, which stays as it is: what it has learned is put into a twin (`reader`).

        Raises:
            UserError: no such wire, pieces missing, or trained for other models.
        """
        folder = locate(self.path)
        config = read_config(folder)
        if lm.name not in config.adapters:
            raise UserError(f"wire: {self.path} is read by {', '.join(config.adapters)}, found {lm.name}.")
        source = source_of(config.source, lm)
        if trained := (config.formats or {}).get(source.name):
            # How an encoder reads belongs to the wire; how its reader is asked is the user's to say.
            source = copy(source)
            source.format = trained
        modules = LatentModules(config, {lm.name: lm}, source)
        reader = restore(modules, {lm.name: lm}, folder)[lm.name]
        bound = self.model_copy()
        bound._modules, bound._reader = modules.for_reading(), lm.name
        bound._learned = None if reader is lm else reader
        return bound

    def reader(self, lm: LM) -> LM:
        if self._learned is None:
            return lm
        learned = copy(self._learned)
        learned.format = lm.format
        return learned

    def trained_format(self, lm: LM) -> PromptFormat | None:
        return (self.config.formats or {}).get(lm.name)

    def latents(self, contexts: Sequence[str]) -> Latents:
        found: Latents = self.modules(contexts)
        return found

    @property
    def config(self) -> LatentConfig:
        """What the wire is made of, bound or not. Raises `UserError` where there is no such wire."""
        return read_config(locate(self.path)) if self._modules is None else self._modules.config

    @property
    def question_aware(self) -> bool:
        return self.config.carry == "prompt"

    @property
    def keeps_text(self) -> bool:
        return self.question_aware or self.config.shown == "text"

    @property
    def plain_label(self) -> str:
        return self.path


def locate(path: str) -> Path:
    """The folder of a wire: one that ships with the package, one's own, or the best of a run.

    Raises:
        UserError: there is none.
    """
    if path.startswith("embedded:"):
        return models.wire_folder(path.removeprefix("embedded:"))
    for folder in (Path(path), Path(path) / BEST):
        if (folder / CONFIG).is_file():
            return folder
    raise UserError(
        f"wire: found no {CONFIG} in {path}, expected the folder of a trained wire or of a run that trained one."
    )


def source_of(name: str, lm: LM) -> LM:
    """The encoder's model: the reader itself where it is the same, else one for all wires that hold it.

    It is frozen: nothing that trains may ask here.
    """
    from latentwire.lm.model import LM as Model

    if lm.name == name:
        return lm
    found = _SOURCES.get(key := _key(name, lm))
    if found is None:
        found = Model.load(name, dtype=lm.model.dtype, device=str(lm.device))
        _SOURCES[key] = found
    return found


def share(source: LM, lm: LM) -> None:
    """Let wires of the reader `lm` encode with this source, as long as somebody holds it."""
    _SOURCES[_key(source.name, lm)] = source


def _key(name: str, lm: LM) -> tuple[str, torch.dtype, str]:
    return name, lm.model.dtype, str(lm.device)
