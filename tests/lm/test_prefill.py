"""Prefill and cached reading equal one full forward, whatever the mask, the padding and the company."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latentwire import UserError
from latentwire.lm.decoding import Decoding
from latentwire.lm.masks.reading import Columns, LayerRange
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.scoring.continuations import score_whole
from tests.lm.test_masks import MASKS, PADDINGS, batch, block_ids, close
from tests.support.dense import Layout, columns_of, dense, layouts, numbers, stock
from tests.support.models import FAMILIES, tiny_lm

RANGES = [None, LayerRange(1, 2)]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


def prefix_of(mask: str, padding: str, layers: LayerRange | None = None) -> tuple[Prefix, list[Layout]]:
    ids, rows = batch(mask, padding)
    return Prefix(ids=ids, columns=columns_of(rows), layers=layers), rows


def answered(row: Layout, ids: Tensor, answer: list[int]) -> tuple[Tensor, Layout]:
    """A row with an answer read causally after it."""
    end = 1 + max(p for p, real in zip(row.positions, row.valid, strict=True) if real)
    more = len(answer)
    layout = Layout(
        row.valid + [True] * more,
        row.positions + list(range(end, end + more)),
        row.blocks + [-1] * more,
        row.documents + [-1] * more,
    )
    return torch.cat([ids, torch.tensor(answer, dtype=torch.long)])[None], layout


def predictors(row: Layout, answers: int) -> list[int]:
    """The columns that predict an answer: the row's last token and every answer token but the last."""
    last = max((p, c) for c, (p, real) in enumerate(zip(row.positions, row.valid, strict=True)) if real)[1]
    return [last, *range(len(row.valid), len(row.valid) + answers - 1)]


def reference_logits(lm: LM, row: Layout, ids: Tensor, answer: list[int], layers: LayerRange | None) -> Tensor:
    """`(A, V)`: what predicts each answer token, by the dense reference, a row alone."""
    whole, layout = answered(row, ids, answer)
    chosen = None if layers is None else range(layers.start, layers.stop)
    return dense(stock(lm.model), whole, [layout], layers=chosen)[0, predictors(row, len(answer))]


ANSWERS = [numbers(6, 21), numbers(1, 22), numbers(4, 23)]


@pytest.mark.parametrize("layers", RANGES, ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", MASKS)
@torch.no_grad()
def test_forced_equals_the_dense_reference(lm: LM, mask: str, padding: str, layers: LayerRange | None) -> None:
    prefix, rows = prefix_of(mask, padding, layers)
    forced = lm.forced(prefix, pad_rows(ANSWERS, -100))
    logits = lm.head(forced.hidden)
    assert prefix.ids is not None
    for n, answer in enumerate(ANSWERS):
        assert forced.labels[n].tolist() == answer + [-100] * (6 - len(answer))
        close(logits[n, : len(answer)], reference_logits(lm, rows[n], prefix.ids[n], answer, layers))


@pytest.mark.parametrize("layers", RANGES, ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", MASKS)
@torch.no_grad()
def test_scores_equal_the_dense_reference(lm: LM, mask: str, padding: str, layers: LayerRange | None) -> None:
    prefix, rows = prefix_of(mask, padding, layers)
    assert prefix.ids is not None
    continuations = [[ANSWERS[0], ANSWERS[1], ANSWERS[2]], [ANSWERS[2]], [ANSWERS[1], ANSWERS[0]]]
    scores = lm.score(lm.prefill(prefix), continuations)
    for n, row in enumerate(continuations):
        for answer, ours in zip(row, scores[n], strict=True):
            logits = reference_logits(lm, rows[n], prefix.ids[n], answer, layers)
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
            assert ours.logprob == pytest.approx(float(chosen.sum()), abs=1e-4)
            assert ours.greedy == (logits.argmax(-1).tolist() == answer)
            assert ours.tokens == len(answer)


@pytest.mark.parametrize("layers", RANGES, ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", MASKS)
@torch.no_grad()
def test_greedy_tokens_are_those_of_the_dense_reference(
    lm: LM, mask: str, padding: str, layers: LayerRange | None
) -> None:
    prefix, rows = prefix_of(mask, padding, layers)
    assert prefix.ids is not None
    generated = lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=5, min_new_tokens=5))
    for n, made in enumerate(generated):
        assert len(made.ids) == 5
        logits = reference_logits(lm, rows[n], prefix.ids[n], list(made.ids), layers)
        logits[:, sorted(lm.eos_ids)] = -torch.inf
        assert made.ids == tuple(logits.argmax(-1).tolist())


@torch.no_grad()
def test_a_greedy_continuation_is_scored_as_greedy(lm: LM) -> None:
    prefix, _ = prefix_of("prefix", "right")
    prefilled = lm.prefill(prefix)
    made = [list(g.ids) for g in lm.generate(prefilled, Decoding(max_new_tokens=4)) if g.ids]
    assert len(made) == prefilled.rows
    other = [[*ids[:-1], (ids[-1] + 1) % 320] for ids in made]
    scores = lm.score(prefilled, [[right, wrong] for right, wrong in zip(made, other, strict=True)])
    assert [[s.greedy for s in row] for row in scores] == [[True, False]] * prefilled.rows


# Indifference to company.


@pytest.mark.parametrize("padding", PADDINGS)
@torch.no_grad()
def test_padding_changes_nothing(lm: LM, padding: str) -> None:
    prefix, rows = prefix_of("segments", padding)
    prefilled = lm.prefill(prefix)
    assert prefix.ids is not None
    for n, row in enumerate(rows):
        real = torch.tensor(row.valid)
        alone = Prefix.of_tokens(
            [prefix.ids[n][real].tolist()], [[b for b, r in zip(row.blocks, real, strict=True) if r]]
        )
        one = lm.prefill(alone)
        close(prefilled.logits[n], one.logits[0])
        assert int(prefilled.next_position[n]) == int(one.next_position[0]) == int(real.sum())
        close(
            lm.forced(prefix, pad_rows(ANSWERS, -100)).hidden[n, : len(ANSWERS[n])],
            lm.forced(alone, pad_rows(ANSWERS[n : n + 1], -100)).hidden[0],
        )


@torch.no_grad()
def test_order_of_rows_changes_nothing(lm: LM) -> None:
    prefix, _ = prefix_of("prefix", "gaps")
    order = torch.tensor([2, 0, 1, 0])
    shuffled = lm.prefill(prefix.select(order))
    prefilled = lm.prefill(prefix)
    close(shuffled.logits, prefilled.logits[order])
    scores = lm.score(prefilled, [[a] for a in ANSWERS])
    again = lm.score(shuffled, [[ANSWERS[int(n)]] for n in order])
    for n, row in zip(order.tolist(), again, strict=True):
        assert row[0].logprob == pytest.approx(scores[n][0].logprob, abs=1e-4)


@torch.no_grad()
def test_a_score_depends_neither_on_siblings_nor_on_what_follows(lm: LM) -> None:
    prefix, _ = prefix_of("prefix", "left")
    one = prefix.select(torch.tensor([0]))
    longer = [*ANSWERS[0], *numbers(3, 30)]
    alone = lm.score(lm.prefill(one), [[ANSWERS[0]]])[0][0]
    among = lm.score(lm.prefill(one), [[ANSWERS[2], longer, ANSWERS[0], ANSWERS[0], ANSWERS[1]]])[0]
    assert among[2].logprob == pytest.approx(alone.logprob, abs=1e-5)
    assert among[2].logprob == pytest.approx(among[3].logprob, abs=1e-5)
    tail = lm.forced(one, torch.tensor([longer]))
    close(tail.hidden[:, :6], lm.forced(one, torch.tensor([ANSWERS[0]])).hidden)
    chain = lm.score(lm.prefill(one), [[ANSWERS[0][:2], ANSWERS[0]]])[0]
    assert chain[0].logprob > chain[1].logprob  # the same tokens and more of them


@torch.no_grad()
def test_a_row_without_continuations_stands_beside_others(lm: LM) -> None:
    prefix, _ = prefix_of("causal", "right")
    scores = lm.score(lm.prefill(prefix), [[], [ANSWERS[0]], []])
    assert [len(row) for row in scores] == [0, 1, 0]
    assert lm.score(lm.prefill(prefix), [[], [], []]) == [[], [], []]


@torch.no_grad()
def test_a_prefilled_stays_as_it_was(lm: LM) -> None:
    prefix, _ = prefix_of("prefix", "right")
    prefilled = lm.prefill(prefix)
    layers = prefilled.cache.layers
    keys = [layer.keys.clone() for layer in layers]
    values = [layer.values.clone() for layer in layers]
    logits = prefilled.logits.clone()
    first = lm.score(prefilled, [[a] for a in ANSWERS])
    made = lm.generate(prefilled, Decoding(max_new_tokens=6))
    sampled = lm.generate(prefilled, Decoding(max_new_tokens=6, temperature=1.0), seeds=[1, 2, 3])
    assert first == lm.score(prefilled, [[a] for a in ANSWERS])
    assert made == lm.generate(prefilled, Decoding(max_new_tokens=6))
    assert sampled == lm.generate(prefilled, Decoding(max_new_tokens=6, temperature=1.0), seeds=[1, 2, 3])
    assert prefilled.cache.layers is layers
    assert all(torch.equal(a, layer.keys) for a, layer in zip(keys, layers, strict=True))
    assert all(torch.equal(a, layer.values) for a, layer in zip(values, layers, strict=True))
    assert torch.equal(logits, prefilled.logits)
    assert prefilled.reading.columns.width == prefix.columns.width


@pytest.mark.parametrize("padding", PADDINGS)
@torch.no_grad()
def test_reading_on_equals_reading_at_once(lm: LM, padding: str) -> None:
    """Tokens of several lengths after a prefill: one more prefill, the same as a longer one."""
    prefix, rows = prefix_of("prefix", padding)
    prefilled = lm.prefill(prefix)
    more = [numbers(3, 40), numbers(1, 41), []]
    steps = torch.arange(3).expand(3, 3)
    columns = Columns.of(
        torch.tensor([[True] * len(m) + [False] * (3 - len(m)) for m in more]),
        prefilled.next_position[:, None] + steps,
    )
    on = lm.read_on(prefilled, pad_rows(more, 0), columns)
    assert prefix.ids is not None
    for n, extra in enumerate(more):
        whole, layout = answered(rows[n], prefix.ids[n], extra)
        last = predictors(rows[n], len(extra) + 1)[-1]
        close(on.logits[n], dense(stock(lm.model), whole, [layout])[0, last])
        assert int(on.next_position[n]) == sum(layout.valid)
    scores = lm.score(on, [[a] for a in ANSWERS])
    for n, answer in enumerate(ANSWERS):
        whole, layout = answered(rows[n], prefix.ids[n], more[n] + answer)
        at = predictors(rows[n], len(more[n]) + len(answer))[-len(answer) :]
        logprobs = dense(stock(lm.model), whole, [layout])[0, at].log_softmax(-1)
        expected = float(logprobs.gather(1, torch.tensor(answer)[:, None]).sum())
        assert scores[n][0].logprob == pytest.approx(expected, abs=1e-4)


# The prefix that leaks on purpose.


@torch.no_grad()
def test_a_leaky_prefix_reads_its_own_answer_and_no_other_does(lm: LM) -> None:
    ids = [numbers(4, 50)]
    answers = [[numbers(3, 51), [*numbers(3, 51)[:2], 9]]]
    row = Layout([True] * 7, list(range(7)), [0] * 7, [-1] * 7)
    leaky = score_whole(lm, Prefix.of_tokens(ids, [[0] * 4], leaky=True), answers)[0]
    for answer, ours in zip(answers[0], leaky, strict=True):
        logits = dense(stock(lm.model), torch.tensor([ids[0] + answer]), [row])[0, 3:6]
        expected = float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
        assert ours.logprob == pytest.approx(expected, abs=1e-4)
    honest_prefix = Prefix.of_tokens(ids, [[0] * 4])
    whole = score_whole(lm, honest_prefix, answers)[0]
    for ours, cached in zip(whole, lm.score(lm.prefill(honest_prefix), answers)[0], strict=True):
        assert ours.logprob == pytest.approx(cached.logprob, abs=1e-4)
    assert not math.isclose(whole[0].logprob, leaky[0].logprob, abs_tol=1e-2)
    changed = torch.tensor([answers[0][0], answers[0][1]])
    twice = honest_prefix.select(torch.tensor([0, 0]))
    hidden = lm.forced(twice, changed).hidden
    assert torch.equal(hidden[0], hidden[1])  # only the last label differs, and nothing may read it


# Lengths.


def test_more_positions_than_the_model_has_are_refused() -> None:
    lm = tiny_lm(max_position_embeddings=16)
    fits, long = numbers(16, 0), numbers(17, 0)
    lm.prefill(Prefix.of_tokens([fits]))
    for refused in (
        lambda: lm.prefill(Prefix.of_tokens([long])),
        lambda: lm.forced(Prefix.of_tokens([long]), torch.tensor([[3]])),
        lambda: lm.forced(Prefix.of_tokens([fits]), torch.tensor([[3, 4]])),
        lambda: lm.score(lm.prefill(Prefix.of_tokens([fits])), [[[3, 4]]]),
    ):
        with pytest.raises(UserError, match="expected at most 16") as error:
            refused()
        assert "\n" not in str(error.value)
    # An answer's last token is read by nobody, and padding after a short answer counts for nothing.
    lm.forced(Prefix.of_tokens([numbers(15, 0), numbers(3, 0)]), pad_rows([[3, 4], [3] * 13], -100))


@torch.no_grad()
def test_positions_beyond_which_rotations_change_are_refused() -> None:
    """LongRoPE turns to other frequencies there: what was read before would not fit what is read after."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    lm = tiny_lm("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    prefix, answer = Prefix.of_tokens([numbers(10, 0)]), numbers(6, 1)
    forced = lm.forced(prefix, torch.tensor([answer]))
    expected = float(lm.head(forced.hidden).log_softmax(-1).gather(2, torch.tensor([answer])[..., None]).sum())
    assert lm.score(lm.prefill(prefix), [[answer]])[0][0].logprob == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match="expected at most 16"):
        lm.score(lm.prefill(prefix), [[[*answer, 9]]])


def test_a_prefix_is_checked_when_it_is_made() -> None:
    columns = Prefix.of_tokens([[3, 4]]).columns
    with pytest.raises(ValueError, match="either ids or embeddings"):
        Prefix(columns=columns)
    with pytest.raises(ValueError, match="either ids or embeddings"):
        Prefix(ids=torch.tensor([[3, 4]]), embeddings=torch.zeros(1, 2, 8), columns=columns)
    with pytest.raises(ValueError, match="does not match"):
        Prefix(ids=torch.tensor([[3, 4, 5]]), columns=columns)
    with pytest.raises(ValueError, match="does not match"):
        Prefix(ids=torch.zeros(1, 0, dtype=torch.long), columns=columns.slice(0, 0))


@pytest.mark.parametrize("text", ["", "a", "3-1", "-2", "1-", "1-2-3", "1,2"])
def test_a_layer_range_is_parsed_or_refused(text: str) -> None:
    if text != "1-":
        with pytest.raises(UserError, match="layers: found"):
            LayerRange.parse(text)
    assert [n for n in range(9) if n in LayerRange.parse("2-4")] == [2, 3, 4]
    assert [n for n in range(9) if n in LayerRange.parse("5")] == [5]
    assert str(LayerRange.parse("2-4")) == "2-4"


def test_block_ids_of_the_tests_are_what_they_say() -> None:
    assert block_ids("segments", 12) == [0, 0, 0, 0, 1, 1, 1, -1, -1, -1, -1, -1]
    assert layouts(columns_of([Layout.causal(2)]))[0] == Layout.causal(2)
