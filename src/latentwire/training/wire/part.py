"""The data of a step, or of a share of it, as tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from latentwire.lm.prefix import STEADY
from latentwire.lm.scoring.questions import Questions, Shared
from latentwire.training.wire.asking import Pair
from latentwire.training.wire.passage import Passage


@dataclass(frozen=True, eq=False)
class Part:
    """B contexts with their questions: all of a step, or a share of it.

    Attributes:
        contexts: their texts.
        groups: what each shares with others, such as an article.
        other: for each the index of a context of another group, among `contexts` and after them `beyond`; its own
            where there is none.
        questions, plain, text: by reader; see `Evidence`.
        names: what the random draws of each context are a function of.
        beyond: texts of further contexts, of other parts of the step, that `other` names.
        names_beyond: the same as `names` for these.
        lengths: by reader, tokens of every answer in the whole step.
        keep: the share of latents that is delivered.
        textual: the readers read the text instead of the latents.
    """

    contexts: list[str]
    groups: list[str]
    other: list[int]
    questions: dict[str, Questions]
    plain: dict[str, Questions]
    text: dict[str, Shared]
    names: list[str]
    lengths: dict[str, list[int]]
    keep: float = 1.0
    textual: bool = False
    beyond: tuple[str, ...] = ()
    names_beyond: tuple[str, ...] = ()

    @property
    def labels(self) -> int:
        """How many answer tokens are learned, over all readers."""
        return sum(len(each.place) for each in self.questions.values())

    def draw(self, name: str, row: int) -> random.Random:
        """A stream of draws for a context: a function of seed, step, context and name, not of the batch."""
        return random.Random(f"{(*self.names, *self.names_beyond)[row]}/{name}")


def partners(groups: Sequence[str]) -> list[int]:
    """For each context the index of the next one, in a circle, of another group; its own where there is none."""
    count = len(groups)
    return [
        next((n % count for n in range(at + 1, at + count) if groups[n % count] != groups[at]), at)
        for at in range(count)
    ]


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
    others: Sequence[tuple[str, str]] | None = None,
) -> Part:
    """Make a part of passages.

    Args:
        chosen: for each passage, the numbers of its questions.
        names, lengths, keep, textual: as `Part` has them.
        after: by reader, token ids between the anchor and an answer that follows latents.
        others: for each passage the text of its partner, a context of another group, and what its draws are
            a function of; partners within the part unless given.
    """
    groups = [passage.group for passage in passages]
    contexts = [passage.context for passage in passages]
    known = {name: at for at, name in enumerate(names)}
    beyond: dict[str, str] = {}
    for text, name in others or ():
        if name not in known:
            known[name] = len(known)
            beyond[name] = text
    other = partners(groups) if others is None else [known[name] for _, name in others]
    pairs: dict[str, list[list[Pair]]] = {
        reader: [[p.pairs[reader][n] for n in numbers] for p, numbers in zip(passages, chosen, strict=True)]
        for reader in devices
    }
    plain = {name: Questions.of(pairs[name], device, STEADY) for name, device in devices.items()}
    asked = dict(plain)
    for name, device in devices.items():
        ids = (after or {}).get(name) or []
        if ids or any(passage.after_latents for passage in passages):
            asked_after = [
                [([*p.asks(name, n), *ids], p.pairs[name][n][1]) for n in numbers]
                for p, numbers in zip(passages, chosen, strict=True)
            ]
            asked[name] = Questions.of(asked_after, device, STEADY)
    return Part(
        contexts=contexts,
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
        beyond=tuple(beyond.values()),
        names_beyond=tuple(beyond),
    )
