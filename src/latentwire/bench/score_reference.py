"""Which side of the scoring benchmark is closer to float32 with one document in each forward pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

Ids = Sequence[int]
CHECKED = 20
"""How many documents are always read in float32; those on which the two sides differ are read as well."""


@dataclass(frozen=True)
class Verdict:
    """ours, theirs: largest distance of a log-probability from float32, in nats, over the documents checked.

    wrong_ours, wrong_theirs: on how many of the documents with two different answers float32 gives another one.
    worst: the choice on which the two sides differ most, with both scores and float32's, in words.
    """

    ours: float
    theirs: float
    wrong_ours: int
    wrong_theirs: int
    worst: str


class Reference:
    """A float32 copy of a model, unpadded and uncached, as it would read one text alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._exact: Any = None

    def verdict(
        self,
        documents: Sequence[tuple[Ids, Sequence[Ids]]],
        ours: Sequence[Sequence[float]],
        theirs: Sequence[Sequence[float]],
    ) -> Verdict:
        """documents: context and choices of each; ours, theirs: a log-probability for every choice."""
        apart = {
            (n, choice): abs(x - y)
            for n, (a, b) in enumerate(zip(ours, theirs, strict=True))
            for choice, (x, y) in enumerate(zip(a, b, strict=True))
        }
        document, choice = max(apart, key=apart.__getitem__)
        differing = [n for n in range(len(documents)) if _best(ours[n]) != _best(theirs[n])]
        checked = sorted({document, *differing, *range(min(CHECKED, len(documents)))})
        exact: dict[int, list[float]] = {n: self._scores(*documents[n]) for n in checked}

        def furthest(found: Sequence[Sequence[float]]) -> float:
            gaps: list[float] = [abs(x - y) for n in checked for x, y in zip(found[n], exact[n], strict=True)]
            return max(gaps)

        def wrong(found: Sequence[Sequence[float]]) -> int:
            return sum(_best(found[n]) != _best(exact[n]) for n in differing)

        worst = (
            f"largest difference: document {document}, choice {choice}: ours {ours[document][choice]:.4f}, "
            f"theirs {theirs[document][choice]:.4f}, float32 alone {exact[document][choice]:.4f}"
        )
        return Verdict(furthest(ours), furthest(theirs), wrong(ours), wrong(theirs), worst)

    @torch.inference_mode()
    def _scores(self, context: Ids, choices: Sequence[Ids]) -> list[float]:
        if self._exact is None:
            self._exact = self._model
            if self._model.dtype != torch.float32:
                self._exact = copy.deepcopy(self._model).float()
        scores = []
        for choice in choices:
            ids = torch.tensor([[*context, *choice[:-1]]], device=self._exact.device)
            logits = self._exact(input_ids=ids, use_cache=False, logits_to_keep=len(choice)).logits[0]
            asked = torch.tensor(choice, device=ids.device)
            scores.append(float(logits.double().log_softmax(-1).gather(1, asked[:, None]).sum()))
        return scores


def _best(logprobs: Sequence[float]) -> int:
    return max(range(len(logprobs)), key=logprobs.__getitem__)
