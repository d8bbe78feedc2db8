"""Wires that keep some of the reader's own keys and values of a context, chosen without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from latentwire.lm.masks.attended import attended
from latentwire.lm.masks.reading import Memory
from latentwire.lm.prefix import Prefix
from latentwire.lm.tapping import depth
from latentwire.wires.scored import ScoredWire

if TYPE_CHECKING:
    from latentwire.lm.model import LM


class Nth(ScoredWire):
    """Every n-th key and value.

    A trained wire whose encoder is `self` with `Anchors` begins as this.
    """

    kind: Literal["nth"] = "nth"

    def score(self, lm: LM, prefix: Prefix) -> Sequence[Tensor]:
        places, _ = self.places(prefix)
        chosen = torch.zeros_like(prefix.columns.valid, dtype=torch.float32).scatter(1, places, 1.0)
        return [chosen[:, None]] * depth(lm)


class Evict(ScoredWire):
    """The keys and values that receive most attention when the context is repeated (KVzip, 2505.23416).

    The reader reads the context twice, without the question. The score of a column, for a key/value head, is the
    largest attention weight that it receives from the second reading. KVzip shares its budget among all heads of
    all layers; `budget=head` shares it among the heads of each layer.
    """

    kind: Literal["evict"] = "evict"

    def score(self, lm: LM, prefix: Prefix) -> Sequence[Tensor]:
        return self.read(lm, prefix)[1]

    def read(self, lm: LM, prefix: Prefix) -> tuple[Memory, Sequence[Tensor]]:
        assert prefix.ids is not None
        lengths = prefix.columns.valid.sum(1)
        rows = [ids[:length] for ids, length in zip(prefix.ids.tolist(), lengths.tolist(), strict=True)]
        line_break = list(lm.tokenizer("\n", add_special_tokens=False)["input_ids"])
        # A text begins once: the second reading leaves BOS out.
        twice = [row + line_break + row[int(row[:1] == [lm.tokenizer.bos_token_id]) :] for row in rows]
        both = Prefix.of_tokens(twice, device=lm.device)
        second = torch.arange(both.columns.width, device=lm.device) >= lengths[:, None]
        return attended(lm, both, both.columns.valid & second)
