"""Training a latent wire before frozen readers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import STEADY
from latentwire.tasks.base import Split
from latentwire.training import checkpoints
from latentwire.training.loop import Training, seed_of
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.step import Measured, Step
from latentwire.training.trainee import Trained
from latentwire.training.wire.config import Fit
from latentwire.training.wire.feed import Feed
from latentwire.training.wire.layout import settled
from latentwire.training.wire.part import Part
from latentwire.training.wire.passages import passages
from latentwire.training.wire.start import begin
from latentwire.training.wire.step import FitStep, collate
from latentwire.training.wire.teacher import Teaching
from latentwire.wires.latent import ridge
from latentwire.wires.latent.modules import LatentModules, fingerprint
from latentwire.wires.latent.reader_text import SAMPLE, OwnText
from latentwire.wires.latent.trained_readers import save

SAMPLE_TOKENS = 48


def fit(
    readers: Mapping[str, LM],
    source: LM,
    settings: Fit,
    folder: Path,
    *,
    start: Path | None = None,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a wire; its readers stay as they are, and what they learn beside it is saved with it.

    Args:
        readers: the models that learn to read it, by their names in `settings.wire.adapters`: all of them, or
            `settings.new_reader` alone. source: the encoder's model.
        folder: gets `diagnostics.jsonl`, `samples/` and `checkpoints/{last,best,final}`; a snapshot in `last` is
            continued from, exactly.
        start: a trained wire to go on from, with steps, optimizer and all that adapts begun anew.

    Raises:
        UserError: the data cannot be used, the wire to start from lacks a piece, or an objective or `ridge` asks
            for other pieces than the wire has.
        RuntimeError: a reader's weights have changed.
    """
    settings = settled(settings, log)
    resumes = checkpoints.find(folder / "checkpoints" / "last") is not None
    trainee = _Fitting(readers, source, settings, log, start, solved=resumes)
    training = Training(trainee, settings, folder, log)
    training.train(progress)
    done = training.finish()
    trainee.check_frozen()
    return done


def check(readers: Mapping[str, LM], source: LM, settings: Fit, start: Path | None = None) -> None:
    """Refuse what must fail later: pieces that do not fit the models, data that cannot be read.

    Args:
        start: the wire to start from, where it is there already.

    Raises:
        UserError: one of those.
    """
    settings = settled(settings, lambda told: None)
    modules = LatentModules(settings.wire, readers, source)
    begin(modules, readers, settings, start, log=lambda _: None)
    _check_pieces(modules, readers, settings)
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        found = passages(settings.data, readers, split, 1, settings.wire)
        if not found:
            raise UserError(f"data: found no passage in its {split} split, expected at least one.")
        with torch.no_grad():
            message = modules([found[0].context])
            for name, lm in readers.items():
                modules.deliver(message, name, OwnText.of([found[0].text[name]], lm))
                modules.after_anchor(lm)


def _check_pieces(modules: LatentModules, readers: Mapping[str, LM], settings: Fit) -> None:
    for each in settings.objectives:
        each.check(modules, readers)
    if settings.ridge is not None:
        ridge.check(modules, readers)


class _Fitting:
    """What the loop asks of a wire's training.

    solved: a snapshot takes the place of what `ridge` would find.
    """

    def __init__(
        self,
        readers: Mapping[str, LM],
        source: LM,
        settings: Fit,
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
        teachings = {name: Teaching(lm, log, STEADY) for name, lm in readers.items()}
        step = FitStep(self.modules, self.readers, teachings, settings.objectives, self.adapting)
        self.step: Step = step
        self._check_carriers()
        _check_pieces(self.modules, readers, settings)
        if settings.ridge is not None and start is not None:
            raise UserError("ridge: found a wire to start from, expected none, since it makes the wire anew.")
        wanted = settings.contexts or settings.steps * settings.passages
        train = passages(settings.data, readers, "train", wanted, settings.wire)
        if settings.ridge is not None and not solved:
            shares = ridge.begin(self.modules, readers, [each.context for each in train], settings.ridge)
            for name, share in shares.items():
                log(f"ridge: {share:.3f} of the variance of {name}'s keys and values explained")
        self.modules.pad_to(STEADY)
        self._after = {name: self.modules.after_anchor(lm) for name, lm in readers.items()}
        self._feed = Feed(settings, train, self._devices, self._after, step.ahead)
        self._held_out = passages(settings.data, readers, "validation", settings.eval_samples, settings.wire)
        trained = sum(each.numel() for each in self.modules.trained().values())
        log(f"{len(train):,} contexts, {trained / 1e6:.2f} M parameters to train")

    @torch.no_grad()
    def _check_carriers(self) -> None:
        """Raise a UserError if an objective compares soft tokens and a reader gets none."""
        if not any(each.needs_soft for each in self.settings.objectives):
            return
        sample = self.modules([SAMPLE])
        for name, lm in self.readers.items():
            text = OwnText.of([lm.format.before(SAMPLE, lm)], lm)
            content = self.modules.deliver(sample, name, text).content
            if content is None or not content.is_floating_point():
                found = next(each.kind for each in self.settings.objectives if each.needs_soft)
                raise UserError(
                    f"objectives: found {found}, which compares soft tokens with embeddings, expected an adapter "
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

    def parts(self, step: int, process: int, processes: int) -> list[Part]:
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
        asked = [[range(passage.asked) for passage in each] for each in batches]
        return [collate(each, n, self._devices, after=self._after) for each, n in zip(batches, asked, strict=True)]

    def evaluate(self) -> Measured:
        return self.step.measure(self._held_out_parts)

    @torch.no_grad()
    def samples(self) -> list[dict[str, Any]]:
        some = self._held_out[: self.settings.samples]
        if not some:
            return []
        message = self.modules([each.context for each in some])
        said: list[dict[str, Any]] = []
        for name, lm in self.readers.items():
            asked = [each.asks(name, 0) + self._after[name] for each in some]
            text = OwnText.of([each.text[name] for each in some], lm)
            prefix = self.modules.deliver(message, name, text).ask(asked, lm)
            texts = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=SAMPLE_TOKENS))
            said += [
                {"id": p.group, "reader": name, "answer": lm.decode(p.pairs[name][0][1]), "prediction": text.text}
                for p, text in zip(some, texts, strict=True)
            ]
        return said

    def export(self, folder: Path) -> None:
        save(self.modules, self._learns, folder)

    def settle(self, folder: Path) -> None:
        self.modules.restore(folder)
        self.modules.requires_grad_(False)

    def check_frozen(self) -> None:
        """Raise a RuntimeError if a reader is no longer what it was."""
        for name, lm in self._frozen.items():
            if fingerprint(lm) != (self.modules.config.fingerprints or {})[name]:
                raise RuntimeError(f"{name} was to stay frozen, and its weights have changed")
