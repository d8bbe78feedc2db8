"""Which columns of questions are learned, found where a batch is made, whatever it is padded to."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch

from latentwire.lm.scoring.questions import IGNORE, Questions, Shared
from tests.support.models import tiny_lm


def pairs(rows: int = 3) -> list[list[tuple[list[int], list[int]]]]:
    draw = random.Random(3)

    def ids(most: int) -> list[int]:
        return [draw.randrange(3, 300) for _ in range(draw.randint(1, most))]

    return [[(ids(6), ids(4)) for _ in range(draw.randint(1, 4))] for _ in range(rows)]


@pytest.mark.parametrize("multiple", [1, 16])
def test_what_is_learned_stands_before_each_answers_token(multiple: int) -> None:
    rows = pairs()
    made = Questions.of(rows, "cpu", multiple)
    assert made.ids.shape[1] % multiple == 0
    found, at = [], 0
    for number, row in enumerate(rows):
        column = 0
        for asked, answer in row:
            for place, token in enumerate(answer):
                index = number * made.ids.shape[1] + column + len(asked) + place - 1
                assert int(made.learned[at]) == index
                assert (int(made.aims[at]), int(made.place[at]), int(made.row[at])) == (token, place, number)
                found += [at] if place == 0 else []
                at += 1
            column += len(asked) + len(answer)
    assert at == len(made.learned)
    assert made.first.tolist() == found
    assert made.counts.tolist() == [sum(len(answer) for _, answer in row) for row in rows]
    every = torch.arange(made.ids.numel() * 2).view(*made.ids.shape, 2)
    assert torch.equal(made.at(every), every.flatten(0, 1)[made.learned])


def test_some_rows_are_the_questions_of_those_rows() -> None:
    rows = pairs(4)
    whole = Questions.of(rows, "cpu", 64)
    assert whole.select(slice(0, 4)) is whole
    some, alone = whole.select(slice(1, 3)), Questions.of(rows[1:3], "cpu", 64)
    for each in fields(Questions):
        assert torch.equal(getattr(some, each.name), getattr(alone, each.name)), each.name


def test_other_labels_are_other_columns_to_learn() -> None:
    made = Questions.of(pairs(), "cpu")
    last = torch.where(made.places == 0, IGNORE, made.labels)  # no answer's first token
    other = made.relabelled(made.ids, last)
    assert torch.equal(other.aims, made.aims[made.place > 0])
    assert other.first.numel() == 0


def test_padding_changes_nothing_that_is_read() -> None:
    lm, rows = tiny_lm(), pairs()
    context = [[5, 9, 20, 31], [7, 8], [40, 41, 42]]
    bare, padded = (
        Questions.of(rows, "cpu", multiple).forced(Shared.of_tokens(context, "cpu", multiple), lm)
        for multiple in (1, 16)
    )
    assert torch.equal(bare.labels, padded.labels)
    torch.testing.assert_close(bare.hidden, padded.hidden, atol=1e-5, rtol=0)
