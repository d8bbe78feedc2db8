"""Packed rows with padding: every document has the states that it has alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.masks.blocks import blocks
from latentwire.lm.masks.reading import SHARED, Columns, LayerRange, Reading
from latentwire.lm.model import LM
from latentwire.lm.prompts import CAUSAL

PADS = 2
"""Padding columns after every document."""
Document = tuple[Sequence[int], Sequence[int]]
"""Token ids and block ids."""


def packed(documents: Sequence[Document], device: torch.device) -> tuple[Tensor, Columns]:
    """One row of documents with padding after each: token ids `(1, T)` and their columns."""
    ids: list[int] = []
    lists: dict[str, list[int]] = {"valid": [], "positions": [], "blocks": [], "documents": []}
    for number, (tokens, of) in enumerate(documents):
        ids += [*tokens, *[0] * PADS]
        lists["valid"] += [1] * len(tokens) + [0] * PADS
        lists["positions"] += [*range(len(tokens)), *[0] * PADS]
        # A block belongs to one document: ids of different documents must differ.
        lists["blocks"] += [b if b == CAUSAL else b + 1000 * number for b in of] + [CAUSAL] * PADS
        lists["documents"] += [number] * len(tokens) + [SHARED] * PADS
    made = {name: torch.tensor([values], device=device) for name, values in lists.items()}
    return torch.tensor([ids], device=device), Columns(**{**made, "valid": made["valid"].bool()})


@torch.no_grad()
def packing_gap(lm: LM, documents: Sequence[Document], layers: LayerRange | None) -> float:
    """Largest difference between a document's final states in a packed row and alone, relative to the largest."""
    ids, columns = packed(documents, lm.device)
    together = lm.run(ids, columns, Reading(columns, layers))[0]
    return _gap(together, columns, [_alone(lm, document, layers) for document in documents])


@torch.no_grad()
def blocks_gap(lm: LM, documents: Sequence[Document], layers: LayerRange | None) -> float:
    """`packing_gap` of logits through `latentwire.blocks`, which tells documents apart by their positions.

    Infinite where `blocks` refuses the model because it does not read its mask.
    """
    ids, columns = packed(documents, lm.device)
    span = None if layers is None else (layers.start, layers.stop - 1)
    try:
        with blocks(lm.model, columns.blocks, layers=span):
            together: Tensor = lm.model(
                input_ids=ids,
                attention_mask=columns.valid.long(),
                position_ids=columns.positions,
                use_cache=False,
            ).logits[0]
    except UserError:
        return float("inf")
    return _gap(together, columns, [lm.head(_alone(lm, document, layers)) for document in documents])


def _alone(lm: LM, document: Document, layers: LayerRange | None) -> Tensor:
    tokens, of = (torch.tensor([list(part)], device=lm.device) for part in document)
    columns = Columns.of(torch.ones_like(tokens).bool(), torch.arange(tokens.shape[1], device=lm.device)[None], of)
    return lm.run(tokens, columns, Reading(columns, layers))[0]


def _gap(together: Tensor, columns: Columns, alone: Sequence[Tensor]) -> float:
    expected = torch.cat(list(alone)).to(together.device)
    kept = together[columns.valid[0].to(together.device)]
    return float((kept - expected).abs().max() / expected.abs().max())
