"""One step of a wire's training: what is read in it, and the module whose forward is all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentwire.lm.model import LM
from latentwire.lm.shared import Questions, Shared
from latentwire.training.fit.evidence import Encoded, Evidence
from latentwire.training.fit.objectives import Term
from latentwire.training.fit.passages import Pair, Passage
from latentwire.training.step import Losses
from latentwire.wires.latent.modules import LatentModules


@dataclass(frozen=True, eq=False)
class Part:
    """B contexts and what is asked about them.

    other: for each another one of another group. questions, text: by reader; see `Evidence`.
    """

    contexts: list[str]
    other: list[int]
    questions: dict[str, Questions]
    text: dict[str, Shared]

    @property
    def labels(self) -> int:
        return sum(int(each.learned.sum()) for each in self.questions.values())


def collate(
    passages: Sequence[Passage], chosen: Sequence[Sequence[int]], devices: Mapping[str, torch.device]
) -> Part:
    """A part of passages with the questions of these numbers."""
    groups = [passage.group for passage in passages]
    count = len(groups)
    turned = [[at, *[(at + step) % count for step in range(1, count)]] for at in range(count)]
    other = [next((n for n in row if groups[n] != groups[row[0]]), row[0]) for row in turned]

    def pairs(reader: str) -> list[list[Pair]]:
        return [[p.pairs[reader][n] for n in numbers] for p, numbers in zip(passages, chosen, strict=True)]

    return Part(
        contexts=[passage.context for passage in passages],
        other=other,
        questions={name: Questions.of(pairs(name), device) for name, device in devices.items()},
        text={
            name: Shared.of_tokens([p.text[name] for p in passages], device) for name, device in devices.items()
        },
    )


class FitStep(nn.Module):
    """A wire, its readers and the objectives on one part."""

    def __init__(self, modules: LatentModules, readers: Mapping[str, LM], objectives: Sequence[Term]) -> None:
        super().__init__()
        self.modules_ = modules
        self._readers = dict(readers)
        self._objectives = objectives

    def evidence(self, part: Part) -> list[Evidence]:
        """Each reader's, of one message."""
        encoded = Encoded(self.modules_, part.contexts, part.other)
        return [
            Evidence(encoded, name, lm, part.questions[name], part.text[name])
            for name, lm in self._readers.items()
        ]

    def forward(self, part: Part, share: float = 0.0) -> Losses:
        found = self.evidence(part)
        terms = {each.kind: torch.stack([each.loss(one) for one in found]).sum() for each in self._objectives}
        total = torch.stack([each.weight_at(share) * terms[each.kind] for each in self._objectives]).sum()
        right, firsts = first_right(found)
        return Losses(total, terms, part.labels, right, firsts, found[0].message.tensors)


@torch.no_grad()
def first_right(found: Sequence[Evidence]) -> tuple[int, int]:
    """How many first answer tokens the readers predict right, and how many there are."""
    right = firsts = 0
    for each in found:
        first = each.questions.first
        guessed: Tensor = each.lm.head(each.student.hidden[first]).argmax(-1)
        right += int((guessed == each.student.labels[first]).sum())
        firsts += int(first.sum())
    return right, firsts
