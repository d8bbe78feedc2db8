"""One step of a wire's training: what is read in it, and the module whose forward is all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from latentwire.lm.model import LM
from latentwire.lm.prefix import STEADY
from latentwire.lm.scoring.questions import Questions, Shared
from latentwire.lm.tapping import depth
from latentwire.training.objectives import Term
from latentwire.training.objectives.adapting import Adapting
from latentwire.training.step import Step
from latentwire.training.wire.evidence import Encoded, Evidence
from latentwire.training.wire.part import Part
from latentwire.training.wire.passages import Pair, Passage
from latentwire.training.wire.teacher import Teaching
from latentwire.wires.latent.modules import LatentModules


def collate(
    passages: Sequence[Passage],
    chosen: Sequence[Sequence[int]],
    devices: Mapping[str, torch.device],
    names: Sequence[str] = (),
    *,
    after: Mapping[str, list[int]] | None = None,
    lengths: dict[str, list[int]] | None = None,
    keep: float = 1.0,
    textual: bool = False,
) -> Part:
    """A part of passages with the questions of these numbers.

    Args:
        after: by reader, token ids between the anchor and an answer behind latents; None for none.
    """
    groups = [passage.group for passage in passages]
    count = len(groups)
    other = [
        next((n % count for n in range(at + 1, at + count) if groups[n % count] != groups[at]), at)
        for at in range(count)
    ]
    pairs: dict[str, list[list[Pair]]] = {
        reader: [[p.pairs[reader][n] for n in numbers] for p, numbers in zip(passages, chosen, strict=True)]
        for reader in devices
    }
    plain = {name: Questions.of(pairs[name], device, STEADY) for name, device in devices.items()}
    asked = dict(plain)
    for name, device in devices.items():
        ids = (after or {}).get(name) or []
        if ids or any(each.behind for each in passages):
            behind = [
                [([*p.asks(name, n), *ids], p.pairs[name][n][1]) for n in numbers]
                for p, numbers in zip(passages, chosen, strict=True)
            ]
            asked[name] = Questions.of(behind, device, STEADY)
    return Part(
        contexts=[passage.context for passage in passages],
        groups=groups,
        other=other,
        questions=asked,
        plain=plain,
        text={
            name: Shared.of_tokens([p.text[name] for p in passages], device, STEADY)
            for name, device in devices.items()
        },
        names=list(names),
        lengths=lengths or {r: [len(answer) for row in rows for _, answer in row] for r, rows in pairs.items()},
        keep=keep,
        textual=textual,
    )


class FitStep(Step):
    """A wire, its readers and the objectives on one part.

    Args:
        readers: as they are trained. teachings: the same readers as they were, reading the text.
    """

    def __init__(
        self,
        modules: LatentModules,
        readers: Mapping[str, LM],
        teachings: Mapping[str, Teaching],
        objectives: Sequence[Term],
        adapting: Adapting,
    ) -> None:
        super().__init__(objectives, adapting)
        self.modules_ = modules
        self._readers, self._teachings = dict(readers), dict(teachings)
        self._taps = {
            name: sorted({layer for each in objectives for layer in each.taps(depth(lm))})
            for name, lm in readers.items()
        }

    def evidence(self, part: Part) -> list[Evidence]:
        """Each reader's, of one message."""
        encoded = Encoded(self.modules_, part)
        best = self.adapting.best
        return [
            Evidence(encoded, name, lm, self._teachings[name], self._taps[name], best)
            for name, lm in self._readers.items()
        ]

    def ahead(self, contexts: Sequence[str]) -> None:
        """As `LatentModules.ahead`, of the wire and of those that its readers follow."""
        self.modules_.ahead(contexts)
        for each in self._teachings.values():
            each.ahead(contexts)
