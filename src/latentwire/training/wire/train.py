"""Training a latent wire for frozen readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire import process_group
from latentwire.errors import UserError
from latentwire.lm import compiling
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import STEADY, Prefix
from latentwire.lm.scoring.questions import Shared
from latentwire.process_group import Group
from latentwire.tasks.base import Split
from latentwire.training import checkpoints, optimizers
from latentwire.training.logit_probe import ASKED
from latentwire.training.loop import Training
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.schedules import seed_of
from latentwire.training.sharding import Sharded
from latentwire.training.sharing import Spare
from latentwire.training.snapshots import CHECKPOINTS, usable
from latentwire.training.trainee import Answered, Trained
from latentwire.training.training_step import Step
from latentwire.training.wire import memory
from latentwire.training.wire.feed import Feed
from latentwire.training.wire.layout import settled
from latentwire.training.wire.part import Part, collate
from latentwire.training.wire.passage import Passage
from latentwire.training.wire.passages import identity, passages
from latentwire.training.wire.prefix_statistics import statistics
from latentwire.training.wire.start import begin
from latentwire.training.wire.teacher import Teacher
from latentwire.training.wire.wire_step import WireStep
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent import ridge
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.modules import LatentModules, fingerprint
from latentwire.wires.latent.reader_text import SAMPLE, OwnText, asking
from latentwire.wires.latent.trained_readers import save

SAMPLE_TOKENS = 48
LOOKED_AT = 16
"""Held-out passages whose prefixes are described in numbers."""


def train_wire(
    readers: Mapping[str, LM],
    source: LM,
    settings: WireTraining,
    folder: Path,
    *,
    start: Path | None = None,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a wire. The readers' own weights stay as they are; adapters trained in them are saved with the wire.

    Before the first step it logs what the training needs of memory and disk beside what there is.

    Args:
        readers: the models that read over the wire, by their names in `settings.wire.adapters`: all of them, or
            `settings.new_reader` alone.
        source: the encoder's model.
        settings: what is trained, on what, and for how long.
        folder: gets `diagnostics.jsonl`, `samples/` and `checkpoints/{last,best,final}`; training resumes exactly
            from a snapshot in `checkpoints/last`.
        start: a trained wire to start from; steps, optimizer and running numbers start anew.
        log: called with each line for the log.
        progress: called with the steps done and all steps.

    Returns:
        What the training came to.

    Raises:
        UserError: the data cannot be used, the wire to start from lacks a piece, an objective or `ridge` needs
            pieces that the wire does not have, or the training does not fit into memory.
        RuntimeError: a reader's weights have changed.

    Example:
        >>> train_wire({lm.name: lm}, lm, WireTraining(wire=config, steps=100), Path("runs/wire"))
    """
    settings = settled(settings, log)
    # What a kill left of a finished training's snapshots is not damaged: it was being removed.
    ended = (folder / CHECKPOINTS / checkpoints.DONE).exists()
    resumes = ended or process_group.current().leader_first(lambda: usable(folder, settings, log)) is not None
    trainee = _WireTrainee(readers, source, settings, folder, log, start, solved=resumes)
    training = Training(trainee, settings, folder, log)
    try:
        training.train(progress)
    finally:
        trainee.compile(False)  # others use the same models
    done = training.finish()
    trainee.check_frozen()
    return done


def check(readers: Mapping[str, LM], source: LM, settings: WireTraining, start: Path | None = None) -> None:
    """Refuse before any work what `train_wire` would refuse later.

    Args:
        readers, source, settings: as `train_wire` takes them.
        start: the wire to start from, if it exists already.

    Raises:
        UserError: pieces that do not fit the models, or data that cannot be read.
    """
    settings = settled(settings, lambda remark: None)
    if settings.optimizer == "adamw8bit":
        optimizers.check_8bit(source.device.type)
    if settings.compile:
        for lm in (source, *readers.values()):
            compiling.check(lm.model, lm.name)
    modules = LatentModules(settings.wire, readers, source)
    begin(modules, readers, settings, start, log=lambda _: None)
    _check_pieces(modules, readers, settings)
    models = [lm.model for lm in (*readers.values(), source)]
    needs = memory.static([*models, modules], modules.trained().values(), settings.optimizer)
    memory.check_static(needs, _free([*models, modules]))
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        some = passages(settings.data, readers, split, 1, settings.wire)
        if not some:
            raise UserError(f"data: found no passage in its {split} split, expected at least one.")
        with torch.no_grad():
            message = modules([some[0].context])
            for name, lm in readers.items():
                modules.deliver(message, name, OwnText.of([some[0].text[name]], lm))
                modules.after_anchor(lm)


def _free(modules: Sequence[nn.Module]) -> dict[torch.device, int]:
    """Bytes that this process can still take on each device where something of these modules is."""
    sharing = process_group.current().local_size  # main memory is everybody's
    places = memory.devices(tensor for module in modules for tensor in module.parameters())
    return {device: memory.free_memory(device) // (sharing if device.type == "cpu" else 1) for device in places}


def _check_pieces(modules: LatentModules, readers: Mapping[str, LM], settings: WireTraining) -> None:
    for objective in settings.objectives:
        objective.check(modules, readers)
    if settings.ridge is not None:
        ridge.check(modules, readers)


class _WireTrainee:
    """A wire and its readers, as the training loop needs them. See `Trainee` for what each method does.

    Args:
        solved: a snapshot will replace what `ridge` would find, so it need not be solved again.
    """

    def __init__(
        self,
        readers: Mapping[str, LM],
        source: LM,
        settings: WireTraining,
        folder: Path,
        log: Callable[[str], None],
        start: Path | None = None,
        *,
        solved: bool = False,
    ) -> None:
        self.settings, self._frozen = settings, dict(readers)
        prints = {name: fingerprint(lm) for name, lm in {**readers, source.name: source}.items()}
        for lm in readers.values():
            lm.model.requires_grad_(False)
        torch.manual_seed(seed_of(settings.seed, "wire"))
        wire = settings.wire.model_copy(update={"fingerprints": prints})
        self.modules = LatentModules(wire, readers, source)
        torch.manual_seed(seed_of(settings.seed, "readers"))
        self.readers, self._learns = begin(self.modules, readers, settings, start, log)
        self._devices = {name: lm.device for name, lm in readers.items()}
        self.adapting = Adapting(settings.objectives)
        teachers = {name: Teacher(lm, log, STEADY) for name, lm in readers.items()}
        step = WireStep(self.modules, self.readers, teachers, settings.objectives, self.adapting)
        self.step: Step = step
        self._check_carriers()
        _check_pieces(self.modules, readers, settings)
        if settings.ridge is not None and start is not None:
            raise UserError("ridge: found a wire to start from, expected none, since it makes the wire anew.")
        wanted = settings.contexts or settings.steps * settings.passages
        train = passages(settings.data, readers, "train", wanted, settings.wire, log)
        if settings.ridge is not None and not solved:
            shares = ridge.begin(self.modules, readers, [passage.context for passage in train], settings.ridge)
            for name, share in shares.items():
                log(f"ridge: {share:.3f} of the variance of {name}'s keys and values explained")
        self.modules.pad_to(STEADY)
        self._after = {name: self.modules.after_anchor(lm) for name, lm in readers.items()}
        known = identity(settings.data, readers, settings.wire)
        self._feed = Feed(settings, train, self._devices, known, self._after, step.ahead)
        self._held_out = passages(settings.data, readers, "validation", settings.eval_samples, settings.wire)
        self._fit_into_memory(step, source, folder, log)
        self.compile(settings.compile)
        trained = sum(piece.numel() for piece in self.modules.trained().values())
        log(f"{len(train):,} contexts, {trained / 1e6:.2f} M parameters to train")

    def _fit_into_memory(self, step: WireStep, source: LM, folder: Path, log: Callable[[str], None]) -> None:
        """Measure what a step keeps, log it beside what there is, and choose how steps are run so that they fit.

        Raises:
            UserError: a single passage, the optimizer or the checkpoints do not fit.
        """
        settings = self.settings
        models = [lm.model for lm in (*self._frozen.values(), source, *self.readers.values())]
        trained = list(self.modules.trained().values())
        needs = memory.static([*models, self.modules], trained, settings.optimizer)
        group = process_group.current()
        free, disk = _free([*models, self.modules]), memory.free_disk(folder)
        memory.check_static(needs, free, disk)
        self.mode(False)
        weights = [tensor for model in (*models, self.modules) for tensor in model.parameters()]
        kept: dict[bool, dict[torch.device, int]] = {}
        for recomputes in (False, True):
            self._recompute(recomputes)
            kept[recomputes] = dict.fromkeys(free, memory.TOO_MUCH)
            for count in (2, 1):
                part, columns = self._feed.probe(count)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    saved = memory.counted(partial(step.kept, part), weights)
                if saved is not None:
                    whole = self._feed.columns / columns / group.size
                    kept[recomputes] = {device: int(size * whole) for device, size in saved.items()}
                    break
        asked = settings.activation_checkpointing
        most = -(-self._feed.largest // group.size)
        own = memory.plan(kept, needs, free, asked, self._feed.passes, most)
        plan = memory.agreed(group.gathered(own))
        self._recompute(plan.recomputes)
        self._feed.passes = plan.passes
        needs = replace(needs, activations=plan.activations)
        how = ", layers run again in the backward pass" if plan.recomputes else ""
        there = ", ".join(
            f"{size / memory.GIB:.2f} GiB free{f' on {device}' if len(free) > 1 else ''}"
            for device, size in free.items()
        )
        log(f"memory: {needs}; steps of {plan.passes} part(s){how}; {there}")
        log(f"disk: checkpoints {needs.checkpoints / memory.GIB:.2f} GiB; {disk / memory.GIB:.2f} GiB free")

    def _recompute(self, recomputes: bool) -> None:
        self.modules.recompute(recomputes)
        for lm in self.readers.values():
            lm.recomputes = recomputes

    def compile(self, compiles: bool) -> None:
        """Whether all layers run compiled. What a step keeps is measured without: compiled it is no more."""
        self.modules.encoder.compile_layers(compiles)
        for lm in (*self._frozen.values(), *self.readers.values()):
            lm.compiles = compiles

    def split_further(self) -> bool:
        return self._feed.split_further()

    @torch.no_grad()
    def _check_carriers(self) -> None:
        """Raise a `UserError` if an objective compares soft tokens and a reader receives none."""
        if not any(term.needs_soft for term in self.settings.objectives):
            return
        sample = self.modules([SAMPLE])
        for name, lm in self.readers.items():
            text = OwnText.of([lm.format.before(SAMPLE, lm)], lm)
            content = self.modules.deliver(sample, name, text).content
            if content is None or not content.is_floating_point():
                kind = next(term.kind for term in self.settings.objectives if term.needs_soft)
                raise UserError(
                    f"objectives: found {kind}, which compares soft tokens with embeddings, expected an adapter "
                    f"of {name} that gives embeddings."
                )

    @property
    def module(self) -> nn.Module:
        return self.modules

    @property
    def device(self) -> torch.device:
        return next(iter(self._devices.values()))

    def mode(self, training: bool) -> None:
        self.modules.train(training)

    def shard(self, group: Group) -> Sharded | None:
        return None  # a wire is small beside its readers

    def parts(self, step: int, process: int, processes: int) -> list[Part | Spare]:
        return self._feed.parts(step, process, processes)

    def labels(self, part: Part) -> int:
        return part.labels

    def tokens(self, step: int) -> int:
        return self._feed.tokens(step)

    def sha256(self) -> str:
        return self._feed.sha256

    @cached_property
    def _held_out_parts(self) -> list[Part]:
        size = self.settings.passages
        batches = [self._held_out[at : at + size] for at in range(0, len(self._held_out), size)]
        asked = [[range(passage.asked) for passage in batch] for batch in batches]
        return [
            collate(batch, numbers, self._devices, after=self._after)
            for batch, numbers in zip(batches, asked, strict=True)
        ]

    def examples(self, part: Part) -> list[str]:
        return part.groups

    def held_out(self) -> list[Part]:
        return self._held_out_parts

    def asked(self, count: int) -> list[list[Passage]]:
        some, size = self._held_out[:count], self.settings.passages
        return [some[at : at + size] for at in range(0, len(some), size)]

    @torch.no_grad()
    def answers(self, batch: Sequence[Passage], *, text: bool = False) -> list[Answered]:
        how = Decoding(max_new_tokens=SAMPLE_TOKENS, stop=("\n",))
        answers: list[Answered] = []
        message = None if text else self.modules([passage.context for passage in batch])
        for name, trained in self.readers.items():
            lm = self._frozen[name] if text else trained
            golds = [lm.decode(passage.pairs[name][0][1]).strip() for passage in batch]
            generated = lm.generate(lm.prefill(self._asked(batch, name, message)), how)
            answers += [Answered(one.text.strip(), [gold]) for one, gold in zip(generated, golds, strict=True)]
        return answers

    def _asked(self, some: Sequence[Passage], name: str, message: Latents | None) -> Prefix:
        """The first question of each passage after its latents, or after its text where there is no message."""
        lm = self.readers[name]
        if message is None:
            shared = Shared.of_tokens([passage.text[name] for passage in some], lm.device)
            return shared.ask([passage.pairs[name][0][0] for passage in some], lm)
        text = OwnText.of([passage.text[name] for passage in some], lm)
        asked = [passage.asks(name, 0) + self._after[name] for passage in some]
        return self.modules.deliver(message, name, text).ask(asked, lm)

    @torch.no_grad()
    def samples(self) -> list[dict[str, Any]]:
        some = self._held_out[: self.settings.samples]
        if not some:
            return []
        message = self.modules([passage.context for passage in some])
        samples: list[dict[str, Any]] = []
        for name, lm in self.readers.items():
            prefix = self._asked(some, name, message)
            texts = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=SAMPLE_TOKENS))
            samples += [
                {"id": p.group, "reader": name, "answer": lm.decode(p.pairs[name][0][1]), "prediction": text.text}
                for p, text in zip(some, texts, strict=True)
            ]
        return samples

    @torch.no_grad()
    def prefixes(self) -> dict[str, dict[str, float]]:
        some, numbers = self._held_out[:LOOKED_AT], {}
        message = self.modules([passage.context for passage in some])
        for name, lm in self._frozen.items():
            if not self.modules.config.adapters[name].changes_text:  # else there is nothing without a text
                text = Shared.of_tokens([passage.text[name] for passage in some], lm.device)
                numbers[name] = statistics(self.modules.deliver(message, name), text, lm)
        return numbers

    def export(self, folder: Path) -> None:
        save(self.modules, self._learns, folder)

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        self.mode(False)
        config = self.modules.config
        logits = {}
        for name, lm in self.readers.items():
            whole = config.carry == "prompt"
            context = lm.format.body(ASKED.context, ASKED.question) if whole else ASKED.context
            texts, questions = asking(config, [(ASKED.context, ASKED.question)], lm)
            text = OwnText.of(texts, lm) if texts is not None else None
            shared = self.modules.deliver(self.modules([context]), name, text)
            prefix = shared.ask([[*questions[0], *self._after[name]]], lm)
            logits[name] = lm.prefill(prefix).logits[0]
        return logits

    def settle(self, folder: Path) -> None:
        self.modules.restore(folder)
        self.modules.requires_grad_(False)

    def check_frozen(self) -> None:
        """Raise a `RuntimeError` if the weights of a reader have changed."""
        for name, lm in self._frozen.items():
            if fingerprint(lm) != (self.modules.config.fingerprints or {})[name]:
                raise RuntimeError(f"{name}: found changed weights, expected those it had, since it is frozen")
