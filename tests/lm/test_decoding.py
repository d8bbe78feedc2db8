"""Generating: greedy as Transformers, sampling by seed, ends where it should."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from latentwire import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefilled, Prefix
from tests.support.dense import numbers
from tests.support.models import FAMILIES, tiny_lm

ROWS = [numbers(9, 1), numbers(5, 2), numbers(12, 3)]
WORDY = numbers(9, 4)
"""A prompt that the tiny Llama answers with letters rather than with broken bytes."""


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


@pytest.fixture(scope="module")
def llama() -> LM:
    return tiny_lm("llama")


def read(lm: LM, rows: list[list[int]] | None = None) -> Prefilled:
    return lm.prefill(Prefix.of_tokens(rows or ROWS))


def ids(lm: LM, prefilled: Prefilled, seeds: list[int] | None = None, **how: Any) -> list[tuple[int, ...]]:
    return [g.ids for g in lm.generate(prefilled, Decoding(**how), seeds)]


def test_greedy_equals_transformers_token_for_token(lm: LM) -> None:
    prefilled = read(lm)
    made = lm.generate(prefilled, Decoding(max_new_tokens=20))
    for n, row in enumerate(ROWS):
        theirs = lm.model.generate(torch.tensor([row]), do_sample=False, max_new_tokens=20)[0, len(row) :].tolist()
        ended = "eos" if theirs[-1] in lm.eos_ids else "length"
        assert made[n].ids == tuple(t for t in theirs if t not in lm.eos_ids)
        assert made[n].ended == ended
        assert made[n].text == lm.decode(made[n].ids)


def with_eos(lm: LM, step: int) -> tuple[LM, tuple[int, ...]]:
    """An LM whose end-of-sequence token is what row 0 says at `step`, and what it would have said."""
    free = ids(lm, read(lm), max_new_tokens=10, min_new_tokens=10)[0]
    other = tiny_lm(lm.name)
    other.model.generation_config.eos_token_id = [free[step], 2]
    return other, free


def test_the_end_token_ends_a_row_and_is_not_part_of_it(llama: LM) -> None:
    lm, free = with_eos(llama, 3)
    step = free.index(free[3])
    made = lm.generate(read(lm), Decoding(max_new_tokens=10))
    assert made[0].ids == free[:step]
    assert made[0].ended == "eos"
    assert lm.eos_ids == {free[3], 2}


def test_suppressed_tokens_never_come_first_and_may_come_later(lm: LM) -> None:
    free = ids(lm, read(lm), max_new_tokens=10, min_new_tokens=10)
    first = sorted({row[0] for row in free})
    words = tuple(lm.tokenizer.convert_ids_to_tokens(first))
    made = ids(lm, read(lm), max_new_tokens=10, min_new_tokens=10, begin_suppress_tokens=words)
    assert not {row[0] for row in made} & set(first)
    for n, row in enumerate(ROWS):
        theirs = lm.model.generate(
            torch.tensor([row]), do_sample=False, max_new_tokens=10, min_new_tokens=10, begin_suppress_tokens=first
        )[0, len(row) :].tolist()
        assert made[n] == tuple(theirs)


def test_a_token_is_banned_for_its_number_of_steps_and_no_longer(lm: LM) -> None:
    free = ids(lm, read(lm), max_new_tokens=10, min_new_tokens=10)
    words = {word: lm.tokenizer.convert_tokens_to_ids(word) for word in lm.tokenizer.get_vocab()}
    often = {row[4]: next(word for word, id_ in words.items() if id_ == row[4]) for row in free}
    how = {"max_new_tokens": 10, "min_new_tokens": 10}
    for steps in (1, 3, None):
        bans = tuple((word, steps) for word in often.values())
        made = ids(lm, read(lm), **how, suppress_tokens=bans)
        for n, row in enumerate(made):
            # What greedy decoding says with the bans, a full pass a token.
            said = list(ROWS[n])
            for step in range(10):
                logits = lm.model(torch.tensor([said]), use_cache=False).logits[0, -1].clone()
                logits[2] = -torch.inf
                if steps is None or step < steps:
                    logits[list(often)] = -torch.inf
                said.append(int(logits.argmax()))
            assert list(row) == said[len(ROWS[n]) :]


def test_a_ban_leaves_other_rows_of_the_batch_alone(llama: LM) -> None:
    """Rows that began earlier are past their bans while rows that come later still have theirs."""
    prefixes = [Prefix.of_tokens([row]) for row in ROWS]
    word = llama.tokenizer.convert_ids_to_tokens(ids(llama, read(llama), max_new_tokens=3)[0][2])
    how = Decoding(max_new_tokens=6, suppress_tokens=((word, 2),))
    together = llama.generate_all(prefixes * 2, how, rows=2)
    alone = [llama.generate(llama.prefill(prefix), how)[0] for prefix in prefixes * 2]
    assert [each.ids for each in together] == [each.ids for each in alone]


def test_what_is_no_single_token_cannot_be_suppressed(llama: LM) -> None:
    for text in ("old town", ""):
        with pytest.raises(UserError, match=f"found {text!r}, which llama reads as"):
            ids(llama, read(llama), begin_suppress_tokens=(text,))


def test_no_end_before_min_new_tokens(llama: LM) -> None:
    lm, _ = with_eos(llama, 2)
    assert len(ids(lm, read(lm), max_new_tokens=10)[0]) < 6
    held = lm.generate(read(lm), Decoding(max_new_tokens=10, min_new_tokens=6))[0]
    assert len(held.ids) >= 6
    assert not set(held.ids) & lm.eos_ids
    theirs = lm.model.generate(
        torch.tensor([ROWS[0]]), do_sample=False, max_new_tokens=10, min_new_tokens=6,
        eos_token_id=sorted(lm.eos_ids),
    )[0, len(ROWS[0]) :].tolist()  # fmt: skip
    assert held.ids == tuple(t for t in theirs if t not in lm.eos_ids)


def test_a_stop_string_cuts_the_text_of_its_row_alone(llama: LM) -> None:
    prefilled = read(llama, [WORDY, *ROWS])
    plain = llama.generate(prefilled, Decoding(max_new_tokens=12, min_new_tokens=12))
    assert "it=" in plain[0].text
    made = llama.generate(prefilled, Decoding(max_new_tokens=12, min_new_tokens=12, stop=("never said", "it=")))
    assert made[0].text == plain[0].text.split("it=")[0]
    assert made[0].ended == "stop"
    assert made[0].ids == plain[0].ids[: len(made[0].ids)]
    assert made[1:] == plain[1:]


def test_the_earliest_of_several_stop_strings_counts(llama: LM) -> None:
    how = Decoding(max_new_tokens=12, min_new_tokens=12, stop=("it=", "e5", "|"))
    assert llama.generate(read(llama, [WORDY]), how)[0].text == "iv"


# Sampling.


def test_sampling_depends_on_the_seed_of_the_row_alone(lm: LM) -> None:
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 8, "min_new_tokens": 8}
    prefix = Prefix.of_tokens(ROWS)
    together = ids(lm, lm.prefill(prefix), [11, 12, 13], **how)
    for n in range(3):
        assert ids(lm, lm.prefill(prefix.select(torch.tensor([n]))), [11 + n], **how) == [together[n]]
    turned = lm.prefill(prefix.select(torch.tensor([2, 0, 1, 0])))
    expected = [together[2], together[0], together[1], together[0]]
    assert ids(lm, turned, [13, 11, 12, 11], **how) == expected
    assert ids(lm, turned, [21, 22, 23, 24], **how) != expected
    assert len(set(ids(lm, lm.prefill(prefix.select(torch.tensor([0] * 6))), list(range(6)), **how))) > 1


def test_samples_follow_the_probabilities_of_the_model(llama: LM) -> None:
    prefix = Prefix.of_tokens(ROWS[:1])
    prefilled = llama.prefill(prefix.select(torch.zeros(2000, dtype=torch.long)))
    how: dict[str, Any] = {"temperature": 0.7, "max_new_tokens": 1, "min_new_tokens": 1}
    counts = Counter(made[0] for made in ids(llama, prefilled, list(range(2000)), **how))
    logits = prefilled.logits[0].clone()
    logits[sorted(llama.eos_ids)] = -torch.inf
    chances = (logits / 0.7).softmax(-1)
    for token in chances.topk(5).indices.tolist():
        chance = float(chances[token])
        assert counts[token] / 2000 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 2000) ** 0.5)


def test_top_p_keeps_the_smallest_set_that_reaches_it(llama: LM) -> None:
    prefilled = llama.prefill(Prefix.of_tokens(ROWS[:1]).select(torch.zeros(1500, dtype=torch.long)))
    chance, order = prefilled.logits[0].softmax(-1).sort(descending=True)
    top_p = 0.3
    kept = int((chance.cumsum(0) - chance < top_p).sum())
    seen = {m[0] for m in ids(llama, prefilled, list(range(1500)), temperature=1.0, top_p=top_p, max_new_tokens=1)
            if m}  # fmt: skip
    assert seen <= set(order[:kept].tolist())
    assert len(seen) == kept or float(chance[kept - 1]) < 0.01


def test_a_tiny_nucleus_or_temperature_is_greedy(lm: LM) -> None:
    greedy = ids(lm, read(lm), max_new_tokens=8)
    assert ids(lm, read(lm), [1, 2, 3], temperature=1.0, top_p=1e-9, max_new_tokens=8) == greedy
    assert ids(lm, read(lm), [1, 2, 3], temperature=1e-4, max_new_tokens=8) == greedy


def test_the_first_token_has_a_temperature_and_a_nucleus_of_its_own(llama: LM) -> None:
    prefix = Prefix.of_tokens(ROWS[:1])
    prefilled = llama.prefill(prefix.select(torch.zeros(30, dtype=torch.long)))
    greedy = ids(llama, llama.prefill(prefix), max_new_tokens=4, min_new_tokens=4)[0]
    seeds = list(range(30))
    common: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4}
    hot_first = ids(llama, prefilled, seeds, first_temperature=2.0, **common)
    assert len({m[0] for m in hot_first}) > 3
    for made in hot_first:  # and from there on greedy
        after = llama.prefill(Prefix.of_tokens([[*ROWS[0], made[0]]]))
        assert ids(llama, after, max_new_tokens=3, min_new_tokens=3)[0] == made[1:]
    for cold in ({"first_temperature": 0.0}, {"first_top_p": 1e-9}):
        cold_first = ids(llama, prefilled, seeds, temperature=2.0, **cold, **common)
        assert {m[0] for m in cold_first} == {greedy[0]}
        assert len({m[1] for m in cold_first}) > 3


# Edges.


def test_a_row_that_has_ended_does_not_run_into_the_last_position(llama: LM) -> None:
    """Only a row that still grows may be too long: its neighbours' answers are none of its concern."""
    lm = tiny_lm("llama", max_position_embeddings=16)
    long, short = numbers(15, 1), numbers(4, 2)
    first = ids(lm, lm.prefill(Prefix.of_tokens([long])), max_new_tokens=1, min_new_tokens=1)[0][0]
    alone = ids(lm, lm.prefill(Prefix.of_tokens([short])), max_new_tokens=8, min_new_tokens=8)[0]
    assert first not in alone, "choose another seed"
    lm.model.generation_config.eos_token_id = first
    lm = LM(lm.model, lm.tokenizer)
    made = lm.generate(lm.prefill(Prefix.of_tokens([long, short])), Decoding(max_new_tokens=8))
    assert made[0].ids == ()
    assert made[1].ids == alone
    with pytest.raises(UserError, match="expected at most 16"):
        lm.generate(lm.prefill(Prefix.of_tokens([long])), Decoding(max_new_tokens=8, min_new_tokens=8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("first_temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("first_top_p", -0.5),
        ("max_new_tokens", 0),
        ("min_new_tokens", -1),
        ("min_new_tokens", 33),
        ("stop", ("",)),
    ],
)
def test_impossible_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: found .*, expected ") as error:
        Decoding(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seeds", [[1], [1, 2], [1, 2, 3, 4]])
def test_one_seed_a_row(llama: LM, seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=f"seeds: found {len(seeds)}, expected one for each of 3 rows"):
        llama.generate(read(llama), Decoding(temperature=1.0), seeds)
