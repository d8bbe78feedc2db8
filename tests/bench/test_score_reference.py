"""The float32 reference names the side that is off."""

from __future__ import annotations

import pytest
import torch

from latentwire.bench.score_reference import Reference
from tests.support.models import tiny_model

DOCUMENTS = [([7 + n, 20, 30], [[40], [50, 60], [70, 80, 90]]) for n in range(4)]


def exact() -> list[list[float]]:
    found = []
    for context, choices in DOCUMENTS:
        scores = []
        for choice in choices:
            logits = tiny_model()(torch.tensor([[*context, *choice]])).logits[0].detach()
            logprobs = logits.double().log_softmax(-1)
            scores.append(sum(float(logprobs[len(context) - 1 + n, token]) for n, token in enumerate(choice)))
        found.append(scores)
    return found


def test_the_side_that_differs_from_float32_is_named() -> None:
    right, wrong = exact(), exact()
    best = max(range(3), key=right[2].__getitem__)
    wrong[2][best] -= 500.0
    verdict = Reference(tiny_model()).verdict(DOCUMENTS, right, wrong)
    assert verdict.ours == pytest.approx(0, abs=1e-4)
    assert verdict.theirs == pytest.approx(500, abs=1e-3)
    assert (verdict.wrong_ours, verdict.wrong_theirs) == (0, 1)
    assert f"document 2, choice {best}: ours {right[2][best]:.2f}"[:-1] in verdict.worst
    turned = Reference(tiny_model()).verdict(DOCUMENTS, wrong, right)
    assert (turned.wrong_ours, turned.wrong_theirs) == (1, 0)
    same = Reference(tiny_model()).verdict(DOCUMENTS, right, right)
    assert (same.wrong_ours, same.wrong_theirs, same.ours) == (0, 0, verdict.ours)


def test_a_model_in_half_precision_stays_as_it_is() -> None:
    model = tiny_model().to(torch.bfloat16)
    Reference(model).verdict(DOCUMENTS, exact(), exact())
    assert model.dtype == torch.bfloat16
