"""Documents of the training benchmark: random tokens, with the lengths of finetuning data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.lm.prompts import CAUSAL
from latentwire.lm.scoring.questions import IGNORE
from latentwire.training.finetuning.documents import Document
from latentwire.training.finetuning.packing import Plan

FIRST_ID = 5
"""Token ids below are left to special tokens."""
POOL = 256
"""How many documents are packed together; it decides how full the rows are."""


@dataclass(frozen=True)
class Regime:
    """What is trained on, and in which batches.

    Attributes:
        rows, width: of the packed batch, the width in tokens.
        padded: how many documents the padded batch has.
        alone: how many documents are read one by one.
        long: whether documents have 2,000 to 4,000 tokens, or 20 to 1,024 (194 on average).
    """

    rows: int
    width: int
    padded: int
    alone: int
    long: bool = False

    def documents(self, vocabulary: int, packed: bool) -> list[Document]:
        """From one fixed stream: its first ones for the padded batch, or those of the first packed step."""
        lengths = _lengths(self.long)
        if not packed:
            return [_document(pair, n, vocabulary) for n, pair in enumerate(lengths[: self.padded])]
        stream = [_document(pair, n, vocabulary) for n, pair in enumerate(lengths[:POOL])]
        (rows,) = Plan(stream, self.width, self.rows, seed=0).steps(0, 1)
        return [document for row in rows for document in row]


def _lengths(long: bool) -> list[tuple[int, int]]:
    """Lengths in tokens of prompts and responses; the short ones are log-normal, cut off at both ends."""
    draw = torch.Generator().manual_seed(1)
    if long:
        prompt = torch.randint(1600, 3201, (4096,), generator=draw)
        response = torch.randint(400, 801, (4096,), generator=draw)
    else:
        prompt = torch.exp(torch.randn(4096, generator=draw) * 0.6 + 4.0).clamp(12, 600).long()
        response = torch.exp(torch.randn(4096, generator=draw) * 0.8 + 4.6).clamp(8, 424).long()
    return list(zip(prompt.tolist(), response.tolist(), strict=True))


def _document(lengths: tuple[int, int], seed: int, vocabulary: int) -> Document:
    prompt, response = lengths
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST_ID, vocabulary, (prompt + response,), generator=draw).tolist()
    return Document(ids, [IGNORE] * prompt + ids[prompt:], [0] * prompt + [CAUSAL] * response)


def padded(documents: list[Document], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a Trainer with a collator gives an unchanged model.

    Returns:
        Ids and labels `(B, T)`, and an additive mask `(B, 1, T, T)` under which prompts are bidirectional.
    """
    rows, width = len(documents), max(len(document.ids) for document in documents)
    ids = torch.zeros(rows, width, dtype=torch.long)
    labels = torch.full((rows, width), IGNORE)
    mask = torch.full((rows, 1, width, width), torch.finfo(dtype).min, dtype=dtype, device=device)
    for n, document in enumerate(documents):
        length, prompt = len(document.ids), document.blocks.index(CAUSAL)
        ids[n, :length], labels[n, :length] = torch.tensor(document.ids), torch.tensor(document.labels)
        see = torch.ones(length, length, device=device).tril().bool()
        see[:prompt, :prompt] = True
        mask[n, 0, :length, :length].masked_fill_(see, 0)
        mask[n, 0, length:, 0] = 0
    return {"input_ids": ids.to(device), "labels": labels.to(device), "attention_mask": mask}
