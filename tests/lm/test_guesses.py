"""A guess is kept as far as the model would have written it; scores and texts are as without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentwire.lm.decoding import Decoding, guesses
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.lm.test_slots import KINDS, prefixes
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm

LENGTH = 7


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "documents"])
@pytest.mark.parametrize("ended", [False, True])
def test_texts_and_scores_are_those_without_a_guess(lm: LM, kind: str, ended: bool) -> None:
    lm = tiny_lm(lm.name)
    prefilled = lm.prefill(prefixes(lm)[kind])
    held = lm.generate(prefilled, Decoding(max_new_tokens=LENGTH, min_new_tokens=LENGTH))
    if ended:
        lm.model.generation_config.eos_token_id = [held[0].ids[3], 2]
    how = Decoding(max_new_tokens=LENGTH)
    expected = lm.generate(prefilled, how)
    said = [list(text.ids) for text in held]
    wrong = [(token + 1) % 300 + 5 for token in said[1]]
    for given in (
        said,
        [said[0][:2], [*said[1][:3], *wrong[3:]], wrong[:1]],
        [said[1], said[2] + said[0], said[0][:1]],
    ):
        before = [layer.keys.clone() for layer in prefilled.cache.layers]
        read = guesses.read(lm, prefilled, given)
        assert lm.generate(read.prefilled, how, begun=read.begun) == expected
        for mine, (plain,) in zip(read.scores, lm.score(prefilled, [[ids] for ids in given]), strict=True):
            assert mine.logprob == pytest.approx(plain.logprob, abs=1e-4)
            assert (mine.greedy, mine.tokens) == (plain.greedy, plain.tokens)
        for layer, keys in zip(prefilled.cache.layers, before, strict=True):
            assert torch.equal(layer.keys, keys)


def test_what_the_model_would_write_is_taken_and_nothing_after_it() -> None:
    lm = tiny_lm("llama")
    prefilled = lm.prefill(Prefix.of_tokens([numbers(6, 0), numbers(9, 1)]))
    said = [list(t.ids) for t in lm.generate(prefilled, Decoding(max_new_tokens=4, min_new_tokens=4))]
    other = [5 if token != 5 else 6 for token in said[1]]
    read = guesses.read(lm, prefilled, [said[0], [said[1][0], other[1], *said[1][2:]]])
    assert read.begun == [said[0], said[1][:1]]
    assert read.prefilled.next_position.tolist() == [10, 10]
    assert [score.greedy for score in read.scores] == [True, False]


def test_rows_that_a_guess_has_written_take_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the steps of the others are as wide as these are many."""
    lm, rows = tiny_lm("llama"), []
    honest = lm.states
    monkeypatch.setattr(lm, "states", lambda tokens, *rest: rows.append(len(tokens)) or honest(tokens, *rest))
    prefilled = lm.prefill(Prefix.of_tokens([numbers(6, seed) for seed in range(5)]))
    how = Decoding(max_new_tokens=4)
    lm.model.generation_config.eos_token_id = [319]
    expected = lm.generate(prefilled, how)
    said = [list(text.ids) for text in expected]
    rows.clear()
    given = [ids if row != 2 else [(ids[0] + 1) % 300 + 5] for row, ids in enumerate(said)]
    read = guesses.read(lm, prefilled, given)
    assert lm.generate(read.prefilled, how, begun=read.begun) == expected
    assert set(rows) == {1}


@pytest.mark.parametrize(
    ("how", "fits"),
    [
        ({}, True),
        ({"stop": ("\n",)}, True),
        ({"temperature": 0.5}, False),
        ({"first_temperature": 0.5}, False),
        ({"min_new_tokens": 2}, False),
        ({"begin_suppress_tokens": ("a",)}, False),
        ({"suppress_tokens": (("a", 2),)}, False),
    ],
)
def test_only_greedy_texts_without_bans_have_guesses(how: dict[str, Any], fits: bool) -> None:
    assert guesses.fit(tiny_lm("llama"), Decoding(max_new_tokens=4, **how)) is fits


def test_in_16_bits_nothing_is_guessed() -> None:
    lm = tiny_lm("llama")
    lm.model.to(torch.bfloat16)
    assert not guesses.fit(lm, Decoding(max_new_tokens=4))
