"""`LatentWireBase`, what all wires that send latents have in common, and `Latent`, a trained wire."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args
from weakref import WeakValueDictionary

import torch
from pydantic import Field, PrivateAttr

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.loading.lora import merge
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import Prompt
from latentwire.wires.latent import hub_wires
from latentwire.wires.latent.average import Average
from latentwire.wires.latent.encodings import Encodings
from latentwire.wires.latent.gain import Gain, GainOption
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
"""What can be done to a message of latents before it is delivered."""
BEST = Path("checkpoints", "best")
"""Where a run keeps the wire that it trained, below its folder."""
_SOURCES: WeakValueDictionary[tuple[str, torch.dtype, str], LM] = WeakValueDictionary()
"""Loaded sources, by name and by the reader's dtype and device. Weak: memory is freed once no wire holds one."""


class LatentWireBase(Wire):
    """A wire that sends latents, encoded without the question unless the wire carries whole prompts.

    Attributes:
        control: what is done to the message on its way, written `WIRE:CONTROL`. `zero` sends as many latents of
            nothing but zeros, which an adapter reads like any others (only `fuse` makes of them the text alone).
            `mean` sends the average of the latents of other contexts, place by place (`Average`). `8bit`, `6bit`
            and `4bit` quantize the latents.
        gain: a factor on what the reader gets of the latents, constant (`0.8`) or by decoding step (`1.5x4+1`: 1.5
            for the first four tokens of the answer); see `Gain`.
    """

    not_options: ClassVar[frozenset[str]] = frozenset({"kind", "control"})

    control: Control | None = None
    gain: GainOption = Field(default=Gain(), title="FACTOR[xSTEPS+...]")
    _modules: LatentModules | None = PrivateAttr(None)
    _reader: str = PrivateAttr("")
    _average: Average | None = PrivateAttr(None)
    _akin: dict[str, str] = PrivateAttr(default_factory=dict)
    _encodings: Encodings | None = PrivateAttr(None)

    @abstractmethod
    def latents(self, contexts: Sequence[str]) -> Latents:
        """The message of B contexts, before a control changes it."""

    @torch.no_grad()
    def sampled(self, contexts: Sequence[str], akin: Mapping[str, str] | None = None) -> Self:
        """A copy whose `mean` is the average of these contexts' latents.

        Raises:
            UserError: as `Average.of`.
        """
        if self.control != "mean":
            return self
        calibrated = self.model_copy()
        calibrated._average = Average.of(self._encoded, contexts)
        calibrated._akin = {**(akin or {}), **{context: context for context in contexts}}
        return calibrated

    @torch.no_grad()
    def encode(self, contexts: Sequence[str]) -> Message:
        latents = self._encoded(contexts)
        if self.control == "zero":
            return zero(latents)
        if self.control == "mean":
            assert self._average is not None, "call `sampled` first"
            akin = [self._akin.get(context, context) for context in contexts]
            left_out = latents if akin == list(contexts) else self._encoded(akin)
            return self._average.instead_of(latents, akin, left_out)
        return quantize(latents, int(self.control[0])) if self.control else latents

    def _encoded(self, contexts: Sequence[str]) -> Latents:
        return self.latents(contexts) if self._encodings is None else self._encodings.of(contexts, self.latents)

    def plain(self) -> Self:
        """This wire before it is bound, without its control and gain."""
        return self.model_copy(update={"control": None, "gain": Gain()})

    def over(self, bound: Self) -> Self:
        """This wire's control and gain over another one that is bound already, whose encodings they share."""
        if bound._encodings is None:
            bound._encodings = Encodings()
        return bound.model_copy(update={"control": self.control, "gain": self.gain})

    @torch.no_grad()
    def deliver(self, message: Message, prompts: Sequence[Prompt], lm: LM) -> Prefix:
        assert isinstance(message, Latents)
        return self._delivered(message, prompts, lm, self.gain.at(0), [()] * len(prompts))

    @property
    def delivery_changes(self) -> tuple[int, ...]:
        return self.gain.changes

    @torch.no_grad()
    def deliver_again(
        self,
        message: Message,
        rows: Sequence[int],
        prompts: Sequence[Prompt],
        lm: LM,
        step: int,
        written: Sequence[Sequence[int]],
    ) -> Prefix:
        assert isinstance(message, Latents)
        latents = message.select(torch.tensor(rows, device=message.valid.device))
        return self._delivered(latents, prompts, lm, self.gain.at(step), written)

    def _delivered(
        self, latents: Latents, prompts: Sequence[Prompt], lm: LM, gain: float, written: Sequence[Sequence[int]]
    ) -> Prefix:
        """The prefixes of prompts with what has been written after each."""
        pairs = [(prompt.context, prompt.question) for prompt in prompts]
        texts, questions = asking(self.modules.config, pairs, lm)
        text = OwnText.of(texts, lm) if texts is not None else None
        after_anchor = self.modules.after_anchor(lm)
        asked = [[*ids, *after_anchor, *answer] for ids, answer in zip(questions, written, strict=True)]
        shared = self.modules.deliver(latents, self._reader, text, gain)
        if shared.content is None and not all(asked):
            raise UserError(
                "wire: found nothing after a context that crosses as keys and values, expected a question (a "
                "benchmark's own prompt is all context), or an adapter that gives embeddings."
            )
        return shared.ask(asked, lm)

    def carried(self, prompts: Sequence[Prompt], lm: LM) -> list[str]:
        if not self.question_aware:
            return super().carried(prompts, lm)
        sent = [prompt.sent or prompt for prompt in prompts]
        return [lm.format.body(prompt.context, prompt.question) for prompt in sent]

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
    """A trained wire.

    Attributes:
        path: its folder, the run that trained it, `embedded:NAME` or a hub id.
    """

    trained: ClassVar[bool] = True

    kind: Literal["latent"] = "latent"
    path: str
    _learned: LM | None = PrivateAttr(None)

    def bind(self, lm: LM) -> Self:
        """Load the wire for a reader, which is not changed: what was trained with it goes into a twin (`reader`).

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
        if reader is not lm:
            merge(reader.model)
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
        latents: Latents = self.modules(contexts)
        return latents

    @property
    def config(self) -> LatentConfig:
        """The wire's configuration, whether it is bound or not.

        Raises:
            UserError: there is no such wire.
        """
        return read_config(locate(self.path)) if self._modules is None else self._modules.config

    @property
    def question_aware(self) -> bool:
        return self.config.carry == "prompt"

    @property
    def keeps_text(self) -> bool:
        return self.question_aware or self.config.shown == "text"

    @property
    def plain_label(self) -> str:
        return self.path + (f",gain={self.gain}" if self.gain != Gain() else "")


def locate(path: str) -> Path:
    """The folder of a trained wire: one that ships with the package, your own, the best one of a run, or one of
    the hub (`OWNER/NAME@REVISION`) after its download.

    Raises:
        UserError: there is no wire.

    Example:
        >>> locate("embedded:heron-4x")
    """
    if path.startswith("embedded:"):
        return models.wire_folder(path.removeprefix("embedded:"))
    for folder in (Path(path), Path(path) / BEST):
        if (folder / CONFIG).is_file():
            return folder
    if hub_wires.names(path):
        return hub_wires.fetch(path)
    raise UserError(
        f"wire: found no {CONFIG} in {path}, expected the folder of a trained wire or of a run that trained one."
    )


def source_of(name: str, lm: LM) -> LM:
    """The encoder's model: the reader itself where it is the same, else one that all wires share.

    Its weights are frozen; a training loads its own.
    """
    from latentwire.lm.model import LM as Model

    if lm.name == name:
        return lm
    source = _SOURCES.get(key := _key(name, lm))
    if source is None:
        source = Model.load(name, dtype=lm.model.dtype, device=str(lm.device))
        _SOURCES[key] = source
    return source


def share(source: LM, lm: LM) -> None:
    """Let wires of the reader `lm` encode with this source, for as long as someone holds it."""
    _SOURCES[_key(source.name, lm)] = source


def _key(name: str, lm: LM) -> tuple[str, torch.dtype, str]:
    return name, lm.model.dtype, str(lm.device)
