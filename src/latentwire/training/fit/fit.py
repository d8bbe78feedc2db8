"""Training a latent wire before frozen readers."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentwire.errors import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.tasks.base import Split
from latentwire.training.fit.config import Fit
from latentwire.training.fit.objectives import AnswerCrossEntropy
from latentwire.training.fit.passages import Passage, passages
from latentwire.training.fit.step import FitStep, Part, collate, first_right
from latentwire.training.loop import Measured, Trained, Training, seed_of
from latentwire.wires.latent.modules import LatentModules, fingerprint

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
    """Train a wire; its readers stay as they are.

    Args:
        readers: the models that read it, by their names in `settings.wire.adapters`. source: the encoder's model.
        folder: gets `diagnostics.jsonl`, `samples/` and `checkpoints/{last,best,final}`; a snapshot in `last` is
            continued from, exactly.
        start: a trained wire to go on from.

    Raises:
        UserError: the data cannot be used, or the wire to start from lacks a piece.
        RuntimeError: a reader's weights have changed.
    """
    trainee = _Fitting(readers, source, settings, log)
    if start is not None:
        trainee.modules.restore(start)
    training = Training(trainee, settings, folder, log)
    training.train(progress)
    done = training.finish()
    trainee.check_frozen()
    return done


def check(readers: Mapping[str, LM], source: LM, settings: Fit) -> None:
    """Refuse what must fail later: pieces that do not fit the models, data that cannot be read.

    Raises:
        UserError: one of those.
    """
    modules = LatentModules(settings.wire, readers, source)
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        found = passages(settings.data, readers, split, 1)
        if not found:
            raise UserError(f"data: found no passage in its {split} split, expected at least one.")
        with torch.no_grad():
            message = modules([found[0].context])
            for name in readers:
                modules.deliver(message, name)


class _Fitting:
    """What the loop asks of a wire's training."""

    def __init__(self, readers: Mapping[str, LM], source: LM, settings: Fit, log: Callable[[str], None]) -> None:
        self.readers, self.settings = dict(readers), settings
        prints = {name: fingerprint(lm) for name, lm in {**readers, source.name: source}.items()}
        for lm in readers.values():
            lm.model.requires_grad_(False)
        torch.manual_seed(seed_of(settings.seed, "wire"))
        wire = settings.wire.model_copy(update={"fingerprints": prints})
        self.modules = LatentModules(wire, readers, source)
        self._devices = {name: lm.device for name, lm in readers.items()}
        self.step: nn.Module = FitStep(self.modules, readers, settings.objectives)
        wanted = settings.contexts or settings.steps * settings.passages
        self._train = passages(settings.data, readers, "train", wanted)
        self._held_out = passages(settings.data, readers, "validation", settings.eval_samples)
        self._objective = AnswerCrossEntropy()
        trained = sum(each.numel() for each in self.modules.trained().values())
        log(f"{len(self._train):,} contexts, {trained / 1e6:.2f} M parameters to train")

    @property
    def module(self) -> nn.Module:
        return self.modules

    @property
    def device(self) -> torch.device:
        return next(iter(self._devices.values()))

    def mode(self, training: bool) -> None:
        self.modules.train(training)

    def _numbers(self, step: int) -> list[int]:
        """The contexts of a step: every pass over them is shuffled anew."""
        count, size = len(self._train), self.settings.passages
        found: list[int] = []
        for at in range(step * size, (step + 1) * size):
            epoch, place = divmod(at, count)
            found.append(self._order(epoch)[place])
        return found

    def _order(self, epoch: int) -> list[int]:
        if self._epoch[0] != epoch:
            order = list(range(len(self._train)))
            random.Random(f"{self.settings.seed}/order/{epoch}").shuffle(order)
            self._epoch = (epoch, order)
        return self._epoch[1]

    _epoch: tuple[int, list[int]] = (-1, [])

    def parts(self, step: int, process: int, processes: int) -> list[Part]:
        mine = self._numbers(step)[process::processes]
        size = -(-len(mine) // self.settings.accumulation)
        return [self._part(step, mine[at : at + size]) for at in range(0, len(mine), size)]

    def _part(self, step: int, numbers: list[int]) -> Part:
        chosen = []
        for number in numbers:
            draw = random.Random(f"{self.settings.seed}/questions/{step}/{number}")
            count = len(next(iter(self._train[number].pairs.values())))
            chosen.append(draw.sample(range(count), min(count, self.settings.questions)))
        return collate([self._train[number] for number in numbers], chosen, self._devices)

    def labels(self, part: Part) -> int:
        return part.labels

    def tokens(self, step: int) -> int:
        numbers = self._numbers(step)
        return sum(len(ids) for number in numbers for ids in self._train[number].text.values())

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256(repr((self.settings.passages, self.settings.questions)).encode())
        for passage in self._train:
            for name, ids in passage.text.items():
                digest.update(array("q", ids).tobytes())
                for question, answer in passage.pairs[name]:
                    digest.update(array("q", [*question, -1, *answer, -1]).tobytes())
        return digest.hexdigest()

    def sha256(self) -> str:
        return self._sha256

    def _held_out_parts(self) -> list[tuple[list[Passage], Part]]:
        size = self.settings.passages
        batches = [self._held_out[at : at + size] for at in range(0, len(self._held_out), size)]
        return [(each, collate(each, [range(len(_any(p))) for p in each], self._devices)) for each in batches]

    @torch.no_grad()
    def evaluate(self) -> Measured:
        loss, labels, right, firsts = 0.0, 0, 0, 0
        step = self.step
        assert isinstance(step, FitStep)
        for _, part in self._held_out_parts():
            found = step.evidence(part)
            loss += sum(float(self._objective.loss(each)) for each in found)
            labels += part.labels
            some = first_right(found)
            right, firsts = right + some[0], firsts + some[1]
        return Measured(loss / labels, right, firsts)

    @torch.no_grad()
    def samples(self) -> list[dict[str, Any]]:
        some = self._held_out[: self.settings.samples]
        if not some:
            return []
        message = self.modules([each.context for each in some])
        said: list[dict[str, Any]] = []
        for name, lm in self.readers.items():
            prefix = self.modules.deliver(message, name).ask([each.pairs[name][0][0] for each in some], lm)
            texts = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=SAMPLE_TOKENS))
            said += [
                {"id": p.group, "reader": name, "answer": lm.decode(p.pairs[name][0][1]), "prediction": text.text}
                for p, text in zip(some, texts, strict=True)
            ]
        return said

    def export(self, folder: Path) -> None:
        self.modules.save(folder)

    def settle(self, folder: Path) -> None:
        self.modules.restore(folder)
        self.modules.requires_grad_(False)

    def check_frozen(self) -> None:
        """Raise a RuntimeError if a reader is no longer what it was."""
        for name, lm in self.readers.items():
            if fingerprint(lm) != (self.modules.config.fingerprints or {})[name]:
                raise RuntimeError(f"{name} was to stay frozen, and its weights have changed")


def _any(passage: Passage) -> list[Any]:
    return next(iter(passage.pairs.values()))
