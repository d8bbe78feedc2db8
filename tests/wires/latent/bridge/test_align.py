"""Tokens of two models are matched by the characters that they share."""

import random

import pytest
import torch

from latentwire.wires.latent.align import marked, overlaps
from tests.support.bridges import CONTEXTS, reader_lm, source_lm


def slow(wanted, found):
    """One row of `overlaps`, character by character."""
    rows = []
    for start, end in wanted:
        shared = [len(set(range(start, end)) & set(range(a, b))) for a, b in found]
        if sum(shared):
            rows.append([each / sum(shared) for each in shared])
            continue
        before = [at for at, (_, b) in enumerate(found) if b <= start]
        rows.append([float(at == max(before, default=0)) for at in range(len(found))])
    return torch.tensor(rows)


def agree(wanted, found):
    mixed = overlaps(wanted, found, torch.device("cpu"))
    for row, (these, those) in enumerate(zip(wanted, found, strict=True)):
        expected = torch.zeros(mixed.shape[1:])
        expected[: len(these), : len(those)] = slow(these.tolist(), those.tolist())
        torch.testing.assert_close(mixed[row], expected)


def both(contexts):
    ours, theirs = source_lm(), reader_lm()
    return [[marked(lm.format, lm)(each)[1] for each in contexts] for lm in (ours, theirs)]


@pytest.mark.parametrize("turned", [False, True], ids=["to-bos", "from-bos"])
def test_real_tokens_are_mixed_as_they_overlap(turned):
    with_bos, without = both([*CONTEXTS, "née 🦩🦩 a", "Ada\n\nBob"])
    assert any(len(a) != len(b) for a, b in zip(with_bos, without, strict=True))
    agree(*((with_bos, without) if turned else (without, with_bos)))


def test_made_up_tokens_are_mixed_as_they_overlap():
    import numpy as np

    draw = random.Random(0)

    def cut():
        """Tokens of 0 to 4 characters, some with gaps between them."""
        at, spans = 0, []
        for _ in range(draw.randint(1, 12)):
            at += draw.choice([0, 0, 0, 1, 2])
            end = at + draw.randint(0, 4)
            spans.append((at, end))
            at = end
        return np.array(spans, dtype=np.int32)

    agree([cut() for _ in range(60)], [cut() for _ in range(60)])


def test_with_one_tokenizer_each_token_aligns_to_itself():
    (spans, *_), _ = both(CONTEXTS)
    assert spans[0].tolist() == [0, 0]
    mixed = overlaps([spans], [spans], torch.device("cpu"))[0]
    assert torch.equal(mixed, torch.eye(len(spans)))


def test_bos_that_only_one_has_stands_for_the_first_token():
    with_bos, without = both(CONTEXTS[:1])
    assert overlaps(with_bos, without, torch.device("cpu"))[0, 0].argmax() == 0
