"""Documents of the training benchmark: random tokens in lengths as finetuning data has them."""

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
"""Documents that are packed together; rows are as full as they are in a training of so many."""


@dataclass(frozen=True)
class Regime:
    """What is trained on and in which portions.

    rows, width: of the packed batch. padded: documents of the padded batch. alone: documents read one by one.
    long: documents of 2,000 to 4,000 tokens; else of 20 to 1,024, 194 on average.
    """

    rows: int
    width: int
    padded: int
    alone: int
    long: bool = False

    def documents(self, vocabulary: int, packed: bool) -> list[Document]:
        """Of one fixed stream: those of the padded batch, its first ones, or those of a training's first step."""
        lengths = _lengths(self.long)
        if not packed:
            return [_document(pair, n, vocabulary) for n, pair in enumerate(lengths[: self.padded])]
        stream = [_document(pair, n, vocabulary) for n, pair in enumerate(lengths[:POOL])]
        (rows,) = Plan(stream, self.width, self.rows, seed=0).steps(0, 1)
        return [document for row in rows for document in row]


def _lengths(long: bool) -> list[tuple[int, int]]:
    """Tokens of prompt and response.

    The short ones are those of the peers' figures this benchmark began with: both log-normal, cut off.
    """
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
    """What a Trainer with a collator gives a stock model: ids and labels `(B, T)`, and an additive mask
    `(B, 1, T, T)` with the prompt bidirectional."""
    rows, width = len(documents), max(len(each.ids) for each in documents)
    ids = torch.zeros(rows, width, dtype=torch.long)
    labels = torch.full((rows, width), IGNORE)
    mask = torch.full((rows, 1, width, width), torch.finfo(dtype).min, dtype=dtype, device=device)
    for n, each in enumerate(documents):
        length, prompt = len(each.ids), each.blocks.index(CAUSAL)
        ids[n, :length], labels[n, :length] = torch.tensor(each.ids), torch.tensor(each.labels)
        see = torch.ones(length, length, device=device).tril().bool()
        see[:prompt, :prompt] = True
        mask[n, 0, :length, :length].masked_fill_(see, 0)
        mask[n, 0, length:, 0] = 0
    return {"input_ids": ids.to(device), "labels": labels.to(device), "attention_mask": mask}
