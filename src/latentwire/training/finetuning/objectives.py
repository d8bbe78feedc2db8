"""Objectives: named, weighted terms of the loss. A new one is a class and a line where `loop` lists them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced
from latentwire.training import losses


class Objective(Protocol):
    """One term. `loss` returns a sum over tokens; `Step` divides it by the step's number of labels."""

    name: str
    weight: float

    def loss(self, lm: LM, student: Forced) -> Tensor: ...


class AnswerCrossEntropy:
    """Cross-entropy of every answer token, the end-of-sequence token included."""

    name = "answer_ce"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def loss(self, lm: LM, student: Forced) -> Tensor:
        head = losses.Head.of(lm)
        if head is not None:
            return losses.cross_entropy(student.hidden, head, student.labels)
        logits = lm.head(student.hidden).float()
        return torch.nn.functional.cross_entropy(logits, student.labels, reduction="sum")
