"""Packed rows hold every document once, apart from each other, in an order that only the seed decides."""

import random

import pytest
import torch

from latentwire.lm.masks.reading import LayerRange
from latentwire.lm.prompts import CAUSAL
from latentwire.training.finetuning.documents import IGNORE, Document
from latentwire.training.finetuning.packing import Plan, collate, pack
from latentwire.training.finetuning.row_step import RowEvidence, RowStep
from latentwire.training.objectives import AnswerCrossEntropy
from tests.support.models import FAMILIES, tiny_lm


def documents(count, seed=0, block=0):
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        prompt, answer = draw.randint(2, 14), draw.randint(1, 6)
        ids = [draw.randrange(3, 300) for _ in range(prompt + answer)]
        made.append(Document(ids, [IGNORE] * prompt + ids[prompt:], [block] * prompt + [CAUSAL] * answer))
    return made


def test_packing_keeps_every_document_once_within_the_width():
    draw = random.Random(1)
    lengths = [draw.randint(1, 100) for _ in range(500)]
    rows = pack(lengths, 128)
    assert sorted(index for row in rows for index in row) == list(range(500))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 128
    # Best fit, longest first, wastes little: no fewer rows than the tokens fill, and few more.
    assert len(rows) <= 1.03 * sum(lengths) / 128 + 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", [0, CAUSAL])
def test_a_packed_document_reads_as_it_would_alone(family, block):
    lm = tiny_lm(family)
    made = documents(5, block=block)
    with torch.no_grad():
        packed = RowEvidence(collate([made[:3], made[3:]]), lm)
        alone = [RowEvidence(collate([[each]]), lm) for each in made]
        hidden, labels = (torch.cat([getattr(each.student, of) for each in alone]) for of in ("hidden", "labels"))
    torch.testing.assert_close(packed.student.hidden, hidden, atol=1e-4, rtol=0)
    assert torch.equal(packed.student.labels, labels)
    assert torch.equal(packed.place, torch.cat([each.place for each in alone]))
    assert torch.equal(packed.first, (packed.place == 0).nonzero()[:, 0])
    assert list(packed.lengths) == [length for document in made for length in document.answers]
    assert len(packed.first) == 5


def test_layers_of_a_wire_reach_the_rows():
    lm = tiny_lm()
    made = documents(2)
    with torch.no_grad():
        everywhere, nowhere, causal = (
            RowEvidence(rows, lm).student.hidden
            for rows in (
                collate([made]),
                collate([made], LayerRange(0, 0)),
                collate([[Document(d.ids, d.labels, [CAUSAL] * len(d.ids)) for d in made]]),
            )
        )
    assert torch.equal(nowhere, causal)
    assert not torch.allclose(everywhere, causal)


def test_the_loss_is_the_plain_cross_entropy_of_the_answers():
    lm = tiny_lm()
    made = documents(4)
    losses = RowStep(lm, [AnswerCrossEntropy()])(collate([made[:2], made[2:]]))
    expected = 0.0
    for each in made:
        logits = lm.head(read_all(lm, each)).float()
        targets = torch.tensor(each.labels[1:])
        expected += torch.nn.functional.cross_entropy(
            logits[:-1], targets, ignore_index=IGNORE, reduction="sum"
        ).item()
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    assert losses.labels == sum(label != IGNORE for each in made for label in each.labels)


def read_all(lm, each):
    rows = collate([[each]])
    from latentwire.lm.masks.reading import Reading

    with torch.no_grad():
        return lm.run(rows.ids, rows.columns, Reading(rows.columns))[0]


def test_steps_are_a_function_of_the_step_alone():
    plan = Plan(documents(40), 64, 3, seed=0)
    whole = [[[d.ids for d in row] for row in rows] for rows in plan.steps(0, 20)]
    again = [[[d.ids for d in row] for row in rows] for rows in Plan(documents(40), 64, 3, seed=0).steps(7, 20)]
    assert again == whole[7:]


def test_an_epoch_holds_every_document_once_and_the_next_has_another_order():
    made = documents(40)
    plan = Plan(made, 64, 1, seed=0)
    rows = len(plan._epoch(0))
    first = [d.ids for step in plan.steps(0, rows) for row in step for d in row]
    second = [d.ids for step in plan.steps(rows, 2 * len(plan._epoch(1))) for row in step for d in row]
    assert sorted(first) == sorted(d.ids for d in made)
    assert first != second[: len(first)]


def test_two_masks_see_the_same_rows_and_another_seed_sees_others():
    causal, prefix = (Plan(documents(30, block=block), 64, 2, seed=0) for block in (CAUSAL, 0))
    assert causal.sha256() == prefix.sha256()
    for one, two in zip(causal.steps(0, 10), prefix.steps(0, 10), strict=True):
        assert [[d.ids for d in row] for row in one] == [[d.ids for d in row] for row in two]
        assert [[d.labels for d in row] for row in one] == [[d.labels for d in row] for row in two]
    assert causal.sha256() != Plan(documents(30), 64, 2, seed=1).sha256()


def test_rows_of_a_fixed_shape_read_as_those_without_padding():
    """A compiled kernel sees one shape: missing rows and columns are padding, which nothing learns from."""
    lm = tiny_lm()
    made = documents(5)
    small, fixed = collate([made[:3], made[3:]]), collate([made[:3], made[3:]], shape=(4, 128))
    assert fixed.ids.shape == fixed.labels.shape == fixed.columns.positions.shape == (4, 128)
    ours, theirs = (RowStep(lm, [AnswerCrossEntropy()])(rows) for rows in (fixed, small))
    assert ours.labels == theirs.labels
    torch.testing.assert_close(ours.total, theirs.total)
