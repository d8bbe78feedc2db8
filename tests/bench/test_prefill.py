"""The prefill benchmark: each way stands beside the floor and stock Transformers, at every text and latent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentwire.bench import prefill
from latentwire.bench.setup import SHAPES, BenchRow, Setup, Shape
from latentwire.lm.masks import attention

POINTS = prefill.Points(texts=((1, 16), (3, 20)), context=64, question=4, latents=(4, 16), batches=(1, 2))


@pytest.fixture(autouse=True)
def _nano(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 256, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    monkeypatch.setitem(SHAPES, "nano", Shape("llama", {**SHAPES["tiny"].config, **small}))
    monkeypatch.setitem(prefill.POINTS, "cpu", POINTS)


def rows(only: str) -> list[BenchRow]:
    return list(prefill.measure(Setup(torch.device("cpu"), "nano", only=only)))


def test_each_text_has_floor_peer_and_both_ways() -> None:
    found = rows("text")
    for batch, tokens in POINTS.texts:
        floor, stock, *ours = [row for row in found if (row.at["batch"], row.at["tokens"]) == (batch, tokens)]
        assert [row.who for row in (floor, stock, *ours)] == ["floor", prefill.STOCK, *prefill.OURS]
        for row in ours:
            assert row.figures["over_stock"] == pytest.approx(row.figures["seconds"] / stock.figures["seconds"])
            assert row.figures["times_floor"] == pytest.approx(row.figures["seconds"] / floor.figures["seconds"])


def test_latents_stand_beside_the_text_that_they_replace() -> None:
    found = rows("latents")
    for batch in POINTS.batches:
        [stock] = [row for row in found if row.who == prefill.STOCK and row.at["batch"] == batch]
        assert stock.at["tokens"] == POINTS.context + POINTS.question
        for count in POINTS.latents:
            floor, *ours = [r for r in found if (r.at["batch"], r.at["latents"]) == (batch, count)]
            assert [row.who for row in (floor, *ours)] == ["floor", *prefill.OURS]
            for row in ours:
                assert row.figures["over_stock"] == pytest.approx(
                    row.figures["seconds"] / stock.figures["seconds"]
                )


def test_the_peer_runs_transformers_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[Any] = []
    kernels: list[str] = []
    model, timed = Setup.model, Setup.timed
    monkeypatch.setattr(Setup, "model", lambda setup: models.append(model(setup)) or models[-1])

    def watched(setup: Setup, run: Any, *how: Any, **named: Any) -> Any:
        if models and "prefill" in run.__module__:
            kernels.append(models[0].config._attn_implementation)
        return timed(setup, run, *how, **named)

    monkeypatch.setattr(Setup, "timed", watched)
    rows("text")
    ours = attention.PREFIX + "sdpa"
    assert kernels == ["sdpa", ours, ours] * len(POINTS.texts)
