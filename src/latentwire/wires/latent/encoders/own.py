"""The `self` encoder: a decoder reads the context, and what it holds at chosen columns is what crosses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.reading import Columns, Memory
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import Anchors, Select


class SelfEncoder(BaseModel):
    """Configuration of `Own`.

    mask: how the encoder reads its context. rank: of its low-rank adapters, 0 for none (then nothing but slots
        and marks can learn). marks: whether columns that become latents get a learned embedding added.
    gives: hidden states, keys and values, or both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["self"] = "self"
    select: Select = Anchors()
    mask: Literal["causal", "prefix"] = "prefix"
    rank: int = Field(default=64, ge=0)
    alpha: int = Field(default=64, gt=0)
    marks: bool = True
    gives: Literal["vectors", "keys", "both"] = "keys"

    def build(self, lm: LM) -> Own:
        return Own(self, lm)


class Own(nn.Module):
    """Reads contexts with `lm`'s own weights, shared, and adapters of its own."""

    def __init__(self, settings: SelfEncoder, lm: LM) -> None:
        super().__init__()
        self.settings = settings
        self._lm = lm.twin()
        self.adapters = _adapt(self._lm, settings) if settings.rank else nn.ModuleDict()
        width = lm.embeddings().shape[1]
        self.mark = nn.Parameter(torch.zeros(width, device=lm.device)) if settings.marks else None
        slots = settings.select.slots
        table = lm.embeddings().detach().float()
        # Slots begin as tokens do: drawn with the embeddings' own mean and spread.
        spread = table.std(0) * torch.randn(slots, width, device=lm.device) + table.mean(0)
        self.slots = nn.Parameter(spread) if slots else None

    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts; the M of one never depend on another's."""
        return self.forward_ids([self._lm.format.before(context, self._lm) for context in contexts])

    def forward_ids(self, rows: Sequence[Sequence[int]]) -> Latents:
        """`forward`, for contexts tokenized already."""
        lm = self._lm
        ids = pad_rows(rows, 0).to(lm.device)
        length = torch.tensor([len(row) for row in rows], device=lm.device)
        valid = torch.arange(ids.shape[1], device=lm.device) < length[:, None]
        content = lm.embed(ids)
        positions = torch.arange(ids.shape[1], device=lm.device).expand_as(ids)
        if self.slots is not None:
            count = self.settings.select.slots
            content = torch.cat([content, self.slots.to(content).expand(len(rows), -1, -1)], 1)
            valid = torch.cat([valid, torch.ones_like(valid[:, :1]).expand(-1, count)], 1)
            behind = length[:, None] + torch.arange(count, device=lm.device)
            positions = torch.cat([positions, behind], 1)
        weights = self.settings.select.weights(valid)
        if self.mark is not None:
            chosen = (weights > 0).any(1)[..., None]
            content = content + (chosen * self.mark).to(content)
        block = torch.zeros_like(positions) if self.settings.mask == "prefix" else None
        block = None if block is None else torch.where(valid, block, CAUSAL)
        hidden, memory = lm.memorize(Prefix(embeddings=content, columns=Columns.of(valid, positions, block)))
        return self._latents(hidden, memory, weights, length)

    def _latents(self, hidden: Tensor, memory: Memory, weights: Tensor, length: Tensor) -> Latents:
        kept = weights.sum(-1) > 0
        end = torch.arange(weights.shape[-1], device=weights.device) * (weights > 0)
        last = end.amax(-1)
        positions = memory.columns.positions.gather(1, last)
        keyed = self.settings.gives != "vectors"
        return Latents(
            valid=kept,
            positions=torch.where(kept, positions, 0),
            length=length,
            vectors=weights.to(hidden) @ hidden if self.settings.gives != "keys" else None,
            keys=tuple(weights.to(each)[:, None] @ each for each in memory.keys) if keyed else (),
            values=tuple(weights.to(each)[:, None] @ each for each in memory.values) if keyed else (),
        )


def _adapt(lm: LM, settings: SelfEncoder) -> nn.ModuleDict:
    """Low-rank adapters in every linear layer of the encoder but the head, as one module of their own."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(
        LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
        lm.model,
    )
    found = {
        name.replace(".", "/"): module
        for name, module in lm.model.named_modules()
        if name.endswith(("lora_A.default", "lora_B.default"))
    }
    for module in found.values():
        module.requires_grad_(True).float()
    return nn.ModuleDict(found)
