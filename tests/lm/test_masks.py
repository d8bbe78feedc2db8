"""Every mask on every family equals a slow reference with hand-made masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentwire.lm.masks.reading import Columns, LayerRange, Reading
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from tests.support.dense import Layout, columns_of, dense, layouts, numbers, stock
from tests.support.models import FAMILIES, tiny_lm

MASKS = ("causal", "prefix", "segments")
PADDINGS = ("right", "left", "gaps")
LENGTHS = (14, 9, 11)


def block_ids(mask: str, length: int) -> list[int]:
    """Two thirds of a row are prompt; `segments` cuts the prompt in two and leaves its last token causal."""
    prompt = 2 * length // 3
    inside = {
        "causal": [-1] * prompt,
        "prefix": [0] * prompt,
        "segments": [0] * (prompt // 2) + [1] * (prompt - prompt // 2 - 1) + [-1],
    }[mask]
    return inside + [-1] * (length - prompt)


def batch(mask: str, padding: str, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, list[Layout]]:
    """Token ids and columns of rows of several lengths with their padding at a place of choice."""
    width = max(lengths) + 3
    ids, rows = [], []
    for n, length in enumerate(lengths):
        missing = width - length
        pads = {
            "right": range(length, width),
            "left": range(missing),
            "gaps": [(2 * k + n + 1) % width for k in range(missing)],
        }[padding]
        valid = [column not in set(pads) for column in range(width)]
        token, block = iter(numbers(length, n)), iter(block_ids(mask, length))
        ids.append([next(token) if real else 0 for real in valid])
        blocks = [next(block) if real else -1 for real in valid]
        positions = [max(sum(valid[: column + 1]) - 1, 0) for column in range(width)]
        rows.append(Layout(valid, positions, blocks, [-1] * width))
    return torch.tensor(ids), rows


def packed() -> tuple[Tensor, list[Layout]]:
    """Rows of three documents, the first of each two thirds in one block, with padding between documents."""
    ids, rows = [], []
    for n, sizes in enumerate([(7, 6, 5), (4, 9, 5)]):
        row = Layout([], [], [], [])
        for document, size in enumerate(sizes):
            row.valid += [True] * size + [False]
            row.positions += [*range(size), 0]
            row.blocks += [*block_ids("prefix", size), -1]
            row.documents += [document] * (size + 1)
        rows.append(row)
        ids.append([token if real else 0 for token, real in zip(numbers(21, n), row.valid, strict=True)])
    return torch.tensor(ids), rows


def close(ours: Tensor, reference: Tensor, where: Tensor | None = None) -> None:
    assert torch.isfinite(ours).all()
    if where is not None:
        ours, reference = ours[where], reference[where]
    torch.testing.assert_close(ours, reference, atol=5e-5, rtol=1e-5)


def run(lm: LM, ids: Tensor, rows: list[Layout], layers: LayerRange | None = None) -> Tensor:
    columns = columns_of(rows)
    return lm.head(lm.run(ids, columns, Reading(columns, layers)))


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param)


@pytest.fixture(scope="module")
def eager_lm(lm: LM) -> LM:
    return tiny_lm(lm.name, kernel="eager")


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mask", MASKS)
@torch.no_grad()
def test_a_forward_equals_the_dense_reference(lm: LM, eager_lm: LM, mask: str, padding: str) -> None:
    ids, rows = batch(mask, padding)
    valid = columns_of(rows).valid
    reference = dense(stock(lm.model), ids, rows)
    close(run(lm, ids, rows), reference, valid)
    close(run(eager_lm, ids, rows), reference, valid)


@torch.no_grad()
def test_the_reference_tells_the_masks_apart(lm: LM) -> None:
    """Agreement means something: masks, windows and layer ranges move logits by far more than the tolerance."""
    plain = stock(lm.model)
    ids, rows = batch("prefix", "right")
    valid = columns_of(rows).valid
    prefix = dense(plain, ids, rows)[valid]
    for other in (
        dense(plain, ids, batch("causal", "right")[1])[valid],
        dense(plain, ids, batch("segments", "right")[1])[valid],
        dense(plain, ids, rows, layers=[1])[valid],
    ):
        assert (prefix - other).abs().max() > 0.1


@pytest.mark.parametrize(("first", "stop"), [(0, 1), (1, 2), (1, 3)])
@torch.no_grad()
def test_a_layer_range_equals_the_dense_reference(lm: LM, eager_lm: LM, first: int, stop: int) -> None:
    ids, rows = batch("prefix", "gaps")
    reference = dense(stock(lm.model), ids, rows, layers=range(first, stop))
    valid = columns_of(rows).valid
    close(run(lm, ids, rows, LayerRange(first, stop)), reference, valid)
    close(run(eager_lm, ids, rows, LayerRange(first, stop)), reference, valid)


@torch.no_grad()
def test_packed_documents_equal_the_dense_reference_and_each_document_alone(lm: LM) -> None:
    ids, rows = packed()
    ours = run(lm, ids, rows)
    close(ours, dense(stock(lm.model), ids, rows), columns_of(rows).valid)
    row, start = rows[1], 5  # the second document of the second row
    alone = Layout(row.valid[start:14], row.positions[start:14], row.blocks[start:14], [-1] * 9)
    close(ours[1:2, start:14], run(lm, ids[1:2, start:14], [alone]))


def test_equal_positions_are_ordered_by_column(lm: LM) -> None:
    """Columns that share a position (several vectors in one place) read causally in the order of columns."""
    ids = torch.tensor([numbers(8, 0)])
    row = Layout([True] * 8, [0, 1, 1, 1, 2, 2, 3, 4], [-1] * 8, [-1] * 8)
    with torch.no_grad():
        ours = run(lm, ids, [row])
        close(ours, dense(stock(lm.model), ids, [row]))
        changed = ids.clone()
        changed[0, 2] = 7
        moved = (run(lm, changed, [row]) - ours).abs().amax((0, 2))
    assert (moved[:2] == 0).all()
    assert (moved[2:5] > 0).all()


@torch.no_grad()
def test_the_answer_behind_equal_positions_is_predicted_by_the_last_column() -> None:
    lm = tiny_lm()
    ids = torch.tensor([numbers(5, 0)])
    columns = Columns.of(torch.tensor([[True] * 4 + [False]]), torch.tensor([[0, 1, 2, 2, 2]]))
    prefilled = lm.prefill(Prefix(ids=ids, columns=columns))
    close(prefilled.logits, dense(stock(lm.model), ids, layouts(columns))[:, 3])


@torch.no_grad()
def test_order_of_columns_does_not_matter_only_positions_do(lm: LM) -> None:
    """Masks, windows and rotations follow positions: rows with their columns shuffled read the same."""
    ids, rows = batch("segments", "right", (13,))
    columns = columns_of(rows)
    order = torch.tensor([5, 0, 15, 9, 2, 7, 12, 1, 14, 11, 3, 8, 4, 13, 10, 6])
    columns.positions[:, 13:] = torch.arange(13, 16)
    shuffled = Columns(
        *(part[:, order] for part in (columns.valid, columns.positions, columns.blocks, columns.documents))
    )
    ours = lm.run(ids[:, order], shuffled, Reading(shuffled))
    close(ours, lm.run(ids, columns, Reading(columns))[:, order], shuffled.valid)
    close(
        lm.prefill(Prefix(ids=ids[:, order], columns=shuffled)).logits,
        lm.prefill(Prefix(ids=ids, columns=columns)).logits,
    )


# What the masks promise, tested by changing one token and looking at who notices.


def moved(lm: LM, mask: str, at: int, layers: LayerRange | None = None) -> Tensor:
    """`(T,)`: how far each column's final state moves when the token at column `at` is another."""
    ids = torch.tensor([numbers(12, 5)])
    row = Layout([True] * 12, list(range(12)), block_ids(mask, 12), [-1] * 12)  # a prompt of eight
    columns = columns_of([row])
    changed = ids.clone()
    changed[0, at] = (int(ids[0, at]) + 1) % 320
    with torch.no_grad():
        before, after = (lm.run(x, columns, Reading(columns, layers)) for x in (ids, changed))
    return (after - before).abs().amax((0, 2))


def test_a_changed_later_prompt_token_changes_earlier_states_under_prefix(lm: LM) -> None:
    window = 5 if getattr(lm.config, "sliding_window", None) else 99
    assert (moved(lm, "prefix", 7)[max(0, 8 - window) : 8] > 1e-3).all()
    assert (moved(lm, "causal", 7)[:7] == 0).all()


@pytest.mark.parametrize("mask", MASKS)
def test_no_response_token_ever_changes_an_earlier_state(lm: LM, mask: str) -> None:
    for at in range(8, 12):
        assert (moved(lm, mask, at)[:at] == 0).all()
        assert moved(lm, mask, at)[at] > 1e-3


def test_segments_see_themselves_and_what_was_before_but_not_the_segment_behind(lm: LM) -> None:
    assert (moved(lm, "segments", 3)[:4] > 1e-3).all()
    assert (moved(lm, "segments", 6)[4:7] > 1e-3).all()
    assert (moved(lm, "segments", 6)[:4] == 0).all()
    assert moved(lm, "segments", 0)[4] > 1e-3


def test_a_layer_range_changes_states_only_from_its_first_layer_on() -> None:
    lm = tiny_lm("llama")
    states: dict[str, list[Tensor]] = {}
    name = ""
    for layer in lm.model.get_decoder().layers:
        layer.register_forward_hook(lambda module, args, out: states.setdefault(name, []).append(out))
    ids, rows = batch("prefix", "right", (12,))
    ranges = {"causal": LayerRange(0, 0), "range": LayerRange(1, 2), "all": None}
    for name, layers in ranges.items():  # noqa: B007, the hooks read it
        with torch.no_grad():
            run(lm, ids, rows, layers)
    assert torch.equal(states["causal"][0], states["range"][0])
    assert not torch.allclose(states["causal"][1], states["range"][1], atol=1e-3)
    assert not torch.allclose(states["causal"][0], states["all"][0], atol=1e-3)
    causal_ids, causal_rows = batch("causal", "right", (12,))
    with torch.no_grad():
        assert torch.equal(run(lm, ids, rows, LayerRange(0, 0)), run(lm, causal_ids, causal_rows))


def test_a_document_is_not_moved_by_another_one(lm: LM) -> None:
    ids, rows = packed()
    changed = ids.clone()
    changed[0, 3] = (int(ids[0, 3]) + 1) % 320
    with torch.no_grad():
        gap = (run(lm, ids, rows) - run(lm, changed, rows)).abs().amax(2)[0]
    assert gap[3] > 1e-3
    assert (gap[8:] == 0).all()


def test_rows_of_nothing_but_padding_make_no_nan(lm: LM) -> None:
    ids = torch.tensor([numbers(6, 0), [0] * 6])
    valid = torch.tensor([[True] * 6, [False] * 6])
    columns = Columns.of(valid, torch.arange(6).expand(2, 6))
    everybody_sees_something = Reading(columns).visible(6, 6, 0, 3).any(-1)
    assert everybody_sees_something.all(), "not every kernel forgives a softmax over nothing"
    parameter = next(lm.model.parameters())
    hidden = lm.run(ids, columns, Reading(columns))
    assert torch.isfinite(hidden).all()
    (gradient,) = torch.autograd.grad(hidden[valid].sum(), parameter)
    assert torch.isfinite(gradient).all()


@torch.no_grad()
def test_embeddings_read_as_their_tokens_do(lm: LM) -> None:
    ids, rows = batch("prefix", "left")
    columns = columns_of(rows)
    as_tokens = lm.prefill(Prefix(ids=ids, columns=columns))
    as_vectors = lm.prefill(Prefix(embeddings=lm.embed(ids), columns=columns))
    assert torch.equal(as_tokens.logits, as_vectors.logits)


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
@pytest.mark.parametrize("mask", MASKS)
@torch.no_grad()
def test_soft_caps_and_attention_sinks_survive_eager(family: str, mask: str) -> None:
    lm = tiny_lm(family, kernel="eager")
    ids, rows = batch(mask, "left")
    close(run(lm, ids, rows), dense(stock(lm.model), ids, rows), columns_of(rows).valid)
