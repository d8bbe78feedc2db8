"""Requests scored together, every shared token read once, score as each would alone in two passes."""

from __future__ import annotations

import random

import pytest
import torch

from latentwire import UserError
from latentwire.lm.masks.reading import LayerRange, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.scoring import row_plan, shared_scorer
from latentwire.lm.scoring.continuations import Score
from latentwire.lm.scoring.prefix_tree import Request, minimum, tree
from latentwire.lm.scoring.shared_scorer import SharedScorer
from tests.support.models import FAMILIES, tiny_lm

MASKS = ("causal", "prefix", "segments")


def numbers(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(3, 300) for _ in range(count)]


def blocks(mask: str, context: int, question: int) -> list[int]:
    if mask == "causal":
        return [-1] * (context + question)
    # The last token is one that a continuation would change: it stays outside.
    inside = [0] * context + [0 if mask == "prefix" else 1] * (question - 1)
    return [*inside, -1]


def passages(mask: str, *, count: int = 4, shared: int = 9) -> list[Request]:
    """Passages with three questions each, all after one header; choices of one to five tokens, some alike."""
    draw = random.Random(5)
    header, made = numbers(draw, shared), []
    for n in range(count):
        passage = header + numbers(draw, 12 + n)
        for _ in range(3):
            question = numbers(draw, 3 + n)
            stem = numbers(draw, 2)
            choices = [[*stem, *numbers(draw, k)] for k in (1, 3)] + [numbers(draw, 1), stem]
            made.append(Request(passage + question, blocks(mask, len(passage), len(question)), choices))
    # The same prompt again, and one that ends where another goes on.
    made.append(Request(made[0].ids, made[0].blocks, [numbers(draw, 4)]))
    made.append(Request(passage, blocks(mask, len(passage) - 2, 2), [numbers(draw, 2)]))
    return made


def alone(lm: LM, requests: list[Request], layers: LayerRange | None = None) -> list[list[Score]]:
    """In two passes, one request at a time."""
    found = []
    for request in requests:
        prefix = Prefix.of_tokens([request.ids], [request.blocks], device=lm.device, layers=layers)
        found += lm.score(lm.prefill(prefix), [request.continuations])
    return found


def agree(ours: list[list[Score]], theirs: list[list[Score]]) -> None:
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert [s.logprob for s in one] == pytest.approx([s.logprob for s in two], abs=1e-4)
        assert [(s.greedy, s.tokens) for s in one] == [(s.greedy, s.tokens) for s in two]


def scored(at: SharedScorer, requests: list[Request]) -> list[list[Score]]:
    found = dict(at.score(requests))
    return [found[n] for n in range(len(requests))]


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


@pytest.mark.parametrize("layers", [None, LayerRange(1, 2)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("row", "trunk"), [(512, 16), (20, 4), (1, 1)])
def test_scores_are_those_of_two_passes(lm, mask, layers, row, trunk, monkeypatch):
    monkeypatch.setattr(row_plan, "ROW", row)
    monkeypatch.setattr(row_plan, "MIN_TRUNK", trunk)
    monkeypatch.setattr(shared_scorer, "LOGITS", 7 * 320)
    requests = passages(mask)
    agree(scored(SharedScorer(lm, layers, batch_tokens=200), requests), alone(lm, requests, layers))


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "smollm3", "glm", "phi3", "llama_tied"])
def test_other_families_score_alike(family, monkeypatch):
    monkeypatch.setattr(row_plan, "ROW", 20)
    monkeypatch.setattr(row_plan, "MIN_TRUNK", 4)
    lm, requests = tiny_lm(family, kernel="eager" if family in ("gemma2", "gpt_oss") else None), passages("prefix")
    agree(scored(SharedScorer(lm), requests), alone(lm, requests))


@pytest.mark.parametrize("mask", MASKS)
def test_neither_company_nor_order_changes_a_score(mask):
    lm, requests = tiny_lm(), passages(mask)
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    shuffled = scored(SharedScorer(lm), [requests[n] for n in order])
    agree([shuffled[order.index(n)] for n in range(len(requests))], scored(SharedScorer(lm), requests))
    few = [requests[3]]
    agree(scored(SharedScorer(lm), few), alone(lm, few))


def test_a_passage_is_shared_causally_and_by_segments_but_not_under_one_block():
    causal, prefix, segments = (minimum(passages(mask)) for mask in MASKS)
    requests = passages("causal")
    apart = sum(len(r.ids) + sum(len(c) - 1 for c in r.continuations) for r in requests)
    assert causal < segments < prefix < apart


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        ("causal", 4 + 2 * 2 + 2),  # a passage, two questions, and after one of them the tokens 9 and 10
        ("prefix", 2 * (4 + 2) + 2),  # neither passage nor question can be read without the other
        ("segments", 4 + 2 * 2 + 2),
    ],
)
def test_the_minimum_counts_what_the_mask_lets_be_shared(mask, tokens):
    ends = {"causal": [-1] * 6, "prefix": [0] * 6, "segments": [0] * 4 + [1] * 2}[mask]
    first = Request([3, 4, 5, 6, 7, 8], ends, [[9, 10, 11], [9, 12], [13]])
    second = Request([3, 4, 5, 6, 14, 15], ends, [[16]])
    assert minimum([first, second, first]) == tokens


@pytest.mark.parametrize("mask", MASKS)
def test_the_tree_holds_the_minimum(mask):
    assert tree(passages(mask)).size == minimum(passages(mask))


@pytest.mark.parametrize("mask", MASKS)
def test_tokens_run_are_at_most_1_05_of_the_minimum(mask):
    lm = tiny_lm(max_position_embeddings=4096)
    draw = random.Random(2)
    header, requests = numbers(draw, 700), []
    for n in range(12):
        passage = header + numbers(draw, 280 + 3 * n)
        for _ in range(4):
            question = numbers(draw, 20)
            choices = [numbers(draw, draw.randrange(3, 9)) for _ in range(4)]
            requests.append(Request(passage + question, blocks(mask, len(passage), 20), choices))
    at = SharedScorer(lm)
    agree(scored(at, requests)[:2], alone(lm, requests[:2]))
    assert at.work.least == minimum(requests)
    assert at.work.least <= at.work.run <= 1.05 * at.work.least


def test_rows_of_another_kind_than_tokens_are_not_taken():
    prefix = Prefix.of_tokens([[3, 4, 5], [6]])
    assert [list(r.ids) for r in Request.of(prefix, [[[7]], [[8]]])] == [[3, 4, 5], [6]]
    columns = prefix.columns
    assert Request.of(Prefix(embeddings=torch.zeros(2, 3, 4), columns=columns), [[[7]], [[8]]]) is None
    assert Request.of(Prefix.of_tokens([[3]], leaky=True), [[[7]]]) is None
    memory = Memory((), (), columns)
    assert Request.of(Prefix(ids=prefix.ids, columns=columns, memory=memory), [[[7]], [[8]]]) is None
    left = Prefix(ids=prefix.ids.flip(1), columns=type(columns).of(columns.valid.flip(1), columns.positions))
    assert Request.of(left, [[[7]], [[8]]]) is None


def test_a_request_longer_than_the_model_is_refused_before_anything_runs():
    lm = tiny_lm()
    at = SharedScorer(lm)
    with pytest.raises(UserError, match="129 tokens, expected at most 128"):
        list(at.score([Request([3] * 127, [-1] * 127, [[4], [5, 6, 7]])]))
    assert at.work.run == 0
