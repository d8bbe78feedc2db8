"""Diagnostics say whether what a reader gets of latents is as large as text, and whether it differs at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.lm.prefix import Prefix
from latentwire.lm.scoring.questions import Shared
from latentwire.training.wire.prefix_statistics import statistics
from tests.support.models import tiny_lm
from tests.support.wire_training import KEYS, SOFT, lines_of, run

LM = tiny_lm("llama")
TEXT = Shared.of_tokens([[3, 4, 5, 6, 7], [8, 9, 10]], "cpu")


def as_memory(text: Shared) -> Shared:
    assert text.columns is not None
    return Shared(text.end, LM.memorize(Prefix(ids=text.content, columns=text.columns))[1])


def as_embeddings(text: Shared, factor: float = 1.0) -> Shared:
    assert text.content is not None
    return replace(text, content=LM.embed(text.content) * factor)


def test_the_texts_own_keys_and_values_have_the_size_of_text_and_differ() -> None:
    numbers = statistics(as_memory(TEXT), TEXT, LM)
    assert numbers["keys_gain"] == numbers["values_gain"] == 1
    assert min(numbers[f"{kind}_{name}"] for kind in ("keys", "values") for name in ("spread", "contrast")) > 0.1


def test_soft_tokens_twice_as_large_as_the_texts_have_a_gain_of_two() -> None:
    numbers = statistics(as_embeddings(TEXT, 2.0), TEXT, LM)
    assert numbers["soft_gain"] == pytest.approx(2, abs=1e-3)
    assert set(numbers) == {"soft_rms", "soft_gain", "soft_spread", "soft_contrast"}


def test_latents_that_are_all_alike_have_no_spread_and_contexts_that_are_no_contrast() -> None:
    soft = as_embeddings(TEXT)
    assert soft.content is not None
    alike = replace(soft, content=soft.content[:, :1].expand_as(soft.content))
    assert statistics(alike, TEXT, LM)["soft_spread"] == pytest.approx(0, abs=1e-3)
    assert statistics(alike, TEXT, LM)["soft_contrast"] > 0.1
    same = replace(soft, content=soft.content[:1, :1].expand_as(soft.content))
    assert statistics(same, TEXT, LM)["soft_contrast"] == pytest.approx(0, abs=1e-3)


def test_padding_counts_for_nothing() -> None:
    alone = Shared.of_tokens([[8, 9, 10]], "cpu")
    padded = Shared.of_tokens([[8, 9, 10]], "cpu", multiple=8)
    assert statistics(as_memory(padded), padded, LM) == pytest.approx(
        statistics(as_memory(alone), alone, LM), abs=2e-4
    )


@pytest.mark.parametrize(("adapter", "kind"), [(KEYS, "values"), (SOFT, "soft")], ids=["keys", "soft"])
def test_every_evaluation_of_a_wires_training_writes_them_for_each_reader(
    tmp_path: Path, adapter: Any, kind: str
) -> None:
    run(tmp_path, adapter=adapter)
    evaluated = [line for line in lines_of(tmp_path) if "eval_loss" in line]
    assert len(evaluated) == 4
    for line in evaluated:
        assert line["prefix"]["llama"][f"{kind}_rms"] > 0
        assert torch.isfinite(torch.tensor(list(line["prefix"]["llama"].values()))).all()
