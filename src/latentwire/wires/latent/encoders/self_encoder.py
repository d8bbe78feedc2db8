"""The `self` encoder: a decoder reads the context, and its states at chosen columns cross."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.loading.lora import Lora, inject, merge
from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.masks.reading import Columns, Memory
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix, pad_rows, sent
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.tapping import chosen_layers, depth
from latentwire.wires.latent.align import Spans, marked, overlaps, remembered
from latentwire.wires.latent.drafts import Drafting
from latentwire.wires.latent.encoders.encoder import Encoder
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import Anchors, Select, spread


class SelfConfig(Drafting):
    """The source model reads the context itself, with low-rank adapters of its own, and sends its own states.

    Attributes:
        select: which columns become latents.
        align: the model whose tokens `select` counts. A latent is then taken where such a token ends, so that
            wires of two models have the same number of latents, for the same words. None counts the encoder's own
            tokens.
        mask: how the encoder reads its context.
        rank: of the low-rank adapters, 0 for none (then only slots and marks can learn). alpha: their scale.
        marks: columns that become latents get a learned embedding added.
        gives: hidden states, keys and values, or both.
        layers: whose keys and values cross, counted from 0, negative ones from the end; `upper` for the upper
            half; None for all.
        copied: a full copy of the weights is trained and saved, in place of the shared weights with adapters.
        scaffold: what stands before the context: as in the model's prompts (`prompt`), or the opening of a user
            turn of its chat template (`chat`).
        bos: whether a BOS token begins it; None leaves that to the tokenizer.
        draft, draft_tokens: see `Drafting`.
    """

    kind: Literal["self"] = "self"
    select: Select = Anchors()
    align: str | None = None
    mask: Literal["causal", "prefix"] = "prefix"
    rank: int = Field(default=64, ge=0)
    alpha: int = Field(default=64, gt=0)
    marks: bool = True
    gives: Literal["vectors", "keys", "both"] = "keys"
    layers: Literal["upper"] | Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    copied: bool = False
    scaffold: Literal["prompt", "chat"] = "prompt"
    bos: bool | None = None

    @model_validator(mode="after")
    def _layers_have_keys(self) -> Self:
        if self.layers is not None and self.gives == "vectors":
            raise ValueError("layers: found them beside gives: vectors, expected keys or both, which have layers")
        return self

    @property
    def count(self) -> int | None:
        return self.select.slots or None

    @property
    def counts_tokens_of(self) -> str | None:
        return self.align

    def token_by_token(self, source: str) -> str | None:
        return (self.align or source) if self.select.every_column else None

    def build(self, lm: LM) -> SelfEncoder:
        return SelfEncoder(self, lm)


class SelfEncoder(Encoder):
    """Reads contexts with the model's own, shared weights and adapters, or with a copy of the weights."""

    def __init__(self, settings: SelfConfig, lm: LM) -> None:
        super().__init__()
        self.settings = settings
        self._lm = _copy(lm) if settings.copied else lm.twin()
        self.copy = self._lm.model if settings.copied else None
        adapted = settings.rank and not settings.copied
        self.adapters = (
            inject(self._lm, Lora(rank=settings.rank, alpha=settings.alpha)) if adapted else nn.ModuleDict()
        )
        self._layers = _layers(settings, depth(lm))
        chat = {"template": "chat"} if settings.scaffold == "chat" else {}
        self._format = self._lm.format.model_copy(update=chat)
        self._counted = None if settings.align is None else Tokenizing.load(settings.align)
        self._other = None if self._counted is None else marked(self._counted.format, self._counted)
        self._marked, self._before = marked(self._format, lm), remembered(self._format, lm)
        if self._other is not None and (settings.select.slots or settings.bos is not None):
            raise UserError(
                "encoder: found align beside slots or bos, expected anchors and the tokenizer's own BOS."
            )
        width = lm.embeddings().shape[1]
        self.mark = nn.Parameter(torch.zeros(width, device=lm.device)) if settings.marks else None
        slots = settings.select.slots
        table = lm.embeddings().detach().float()
        # Slots begin like tokens: drawn with the embeddings' mean and spread.
        drawn = table.std(0) * torch.randn(slots, width, device=lm.device) + table.mean(0)
        self.slots = nn.Parameter(drawn) if slots else None
        self.drafts = settings.drafts(lm)
        self._leave_what_nothing_reaches()

    def _leave_what_nothing_reaches(self) -> None:
        """Freeze parameters that no latent depends on, so that they are neither trained nor saved.

        Weights after the last layer's keys and values (its queries, its MLP, the final norm) get no gradient. DDP
        refuses such parameters, and a checkpoint would carry them for nothing.
        """
        wanted = [each for each in self.parameters() if each.requires_grad]
        if wanted:
            with torch.enable_grad(), evaluating(self._lm.model):
                total = torch.stack([each.float().sum() for each in self(["A few words."]).tensors]).sum()
                gradients = torch.autograd.grad(total, wanted, allow_unused=True)
            for each, gradient in zip(wanted, gradients, strict=True):
                each.requires_grad_(gradient is not None)

    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts; the M of one never depend on another's."""
        contexts = self.drafts(contexts)
        lm, rows = self._lm, [self._ids(context) for context in contexts]
        ids = sent(pad_rows(rows, 0, self.multiple), lm.device)
        length = sent(torch.tensor([len(row) for row in rows]), lm.device)
        valid = torch.arange(ids.shape[1], device=lm.device) < length[:, None]
        content = lm.embed(ids)
        positions = torch.arange(ids.shape[1], device=lm.device).expand_as(ids)
        if self.slots is not None:
            count = self.settings.select.slots
            content = torch.cat([content, self.slots.to(content).expand(len(rows), -1, -1)], 1)
            valid = torch.cat([valid, torch.ones_like(valid[:, :1]).expand(-1, count)], 1)
            after = length[:, None] + torch.arange(count, device=lm.device)
            positions = torch.cat([positions, after], 1)
        weights = self.settings.select.weights(valid) if self._other is None else self._aligned(contexts)
        if self.mark is not None:
            chosen = (weights > 0).any(1)[..., None]
            content = content + (chosen * self.mark).to(content)
        causal = self.settings.mask == "causal"
        block = None if causal else torch.where(valid, torch.zeros_like(positions), CAUSAL)
        columns = Columns.of(valid, positions, block)
        prefix = Prefix(embeddings=content, columns=columns, plain=causal and self.slots is None)
        with self._cast():
            hidden, memory = lm.memorize(prefix, plain=True, states=self.settings.gives != "keys")
        return self._latents(hidden, memory, weights, length)

    def _cast(self) -> AbstractContextManager[None]:
        """One cast for all low-rank adapters of a pass."""
        if not len(self.adapters):
            return nullcontext()
        from latentwire.lm.loading.lora_forward import cast  # PEFT takes long to import

        return cast(self._lm.model, self._lm.device.type)

    def only_read(self) -> None:
        """Add low-rank adapters to the weights where that costs little."""
        if len(self.adapters):
            merge(self._lm.model)

    def round(self) -> bool:
        """Give low-rank adapters the dtype of a 16-bit model; returns whether they were rounded.

        In float32, which training needs, they cast the input and the output of every layer.
        """
        dtype = self._lm.model.dtype
        if not len(self.adapters) or dtype not in (torch.bfloat16, torch.float16):
            return False
        self.adapters.to(dtype)
        return True

    def recompute(self, recomputes: bool) -> None:
        """Whether layers keep their input only and run again in the backward pass."""
        self._lm.recomputes = recomputes

    def compile_layers(self, compiles: bool) -> None:
        """Whether layers run compiled."""
        self._lm.compiles = compiles

    def align_to(self, form: PromptFormat) -> None:
        """Count the other model's tokens as in prompts of this format, instead of its files' own."""
        assert self._counted is not None
        self._other = marked(form, self._counted)

    def ahead(self, contexts: Sequence[str]) -> None:
        """Tokenize contexts that will be read soon; may run in another thread. Drafts are not written ahead."""
        for each in () if self.drafts else contexts:
            self._ids(each)
            if self._other is not None:
                self._other(each)

    def keep_drafts(self, keeps: bool) -> None:
        self.drafts.keeps = keeps

    def counted(self, context: str) -> list[int]:
        """The tokens of which each can become a latent: the encoder's own, or those of the model it aligns to."""
        [read] = self.drafts([context])
        return self._ids(read) if self._other is None else self._other(read)[0]

    def taken(self, contexts: Sequence[str]) -> tuple[Tensor, list[Spans]]:
        """Each latent as a mixture `(B, M, T)` of the tokens that are counted, and their places in characters."""
        spans = [(self._other or self._marked)(each)[1] for each in self.drafts(contexts)]
        length = torch.tensor([len(each) for each in spans], device=self._lm.device)
        valid = torch.arange(int(length.max()), device=self._lm.device) < length[:, None]
        return self.settings.select.weights(valid), spans

    def _aligned(self, contexts: Sequence[str]) -> Tensor:
        """`select.weights` over the other model's tokens, each latent at the last column that it overlaps."""
        assert self._other is not None
        wanted = [self._other(each)[1] for each in contexts]
        spans = [self._marked(each)[1] for each in contexts]
        shared = overlaps(wanted, spans, self._lm.device, self.multiple)
        mixed = self.settings.select.weights(shared.any(-1)) @ shared
        column = torch.arange(mixed.shape[-1], device=mixed.device)
        last = ((mixed > 0) * column).amax(-1)
        one = F.one_hot(last, mixed.shape[-1]).to(mixed)
        return one * mixed.any(-1, keepdim=True)

    def _ids(self, context: str) -> list[int]:
        if self._other is not None:
            return self._marked(context)[0]
        ids, bos = self._before(context), self._lm.tokenizer.bos_token_id
        if self.settings.bos is None:
            return ids
        if bos is None:
            raise UserError(f"encoder: found bos: {self.settings.bos}, but {self._lm.name} has no such token.")
        bare = ids[1:] if ids[:1] == [bos] else ids
        return [bos, *bare] if self.settings.bos else bare

    def _latents(self, hidden: Tensor, memory: Memory, weights: Tensor, length: Tensor) -> Latents:
        kept = weights.sum(-1) > 0
        end = torch.arange(weights.shape[-1], device=weights.device) * (weights > 0)
        last = end.amax(-1)
        # Slots are read after the text; for a reader they stand inside the text's span, before any question.
        slots = self.slots is not None
        positions = spread(length, len(weights[0])) if slots else memory.columns.positions.gather(1, last)
        keyed = self.settings.gives != "vectors"
        return Latents(
            valid=kept,
            positions=torch.where(kept, positions, 0),
            length=length,
            vectors=weights.to(hidden) @ hidden if self.settings.gives != "keys" else None,
            keys=_mixed(weights, self._sent(memory.keys)) if keyed else (),
            values=_mixed(weights, self._sent(memory.values)) if keyed else (),
        )

    def _sent(self, every: Sequence[Tensor]) -> list[Tensor]:
        return [every[layer] for layer in self._layers]


def _layers(settings: SelfConfig, count: int) -> tuple[int, ...]:
    if settings.layers is None or settings.layers == "upper":
        return tuple(range(0 if settings.layers is None else (count + 1) // 2, count))
    return chosen_layers(settings.layers, count)


def _mixed(weights: Tensor, columns: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Mixtures `(B, M, T)` of every layer's columns `(B, H, T, D)`, in one product on one device."""
    first = columns[0]
    if any((each.device, each.dtype) != (first.device, first.dtype) for each in columns):
        return tuple(weights.to(each)[:, None] @ each for each in columns)
    # Heads as channels: a product with a dimension of heads would copy the weights for each of them.
    found = weights.to(first) @ torch.cat([each.transpose(1, 2).flatten(2) for each in columns], -1)
    shapes = [(each.shape[1], each.shape[3]) for each in columns]
    parts = torch.split(found, [heads * width for heads, width in shapes], -1)
    return tuple(part.unflatten(-1, shape).transpose(1, 2) for part, shape in zip(parts, shapes, strict=True))


def _copy(lm: LM) -> LM:
    """A copy of the model in float32, which an optimizer needs."""
    model = copy.deepcopy(lm.model).float().requires_grad_(True)
    return LM(model, lm.tokenizer, name=lm.name, prompt_format=lm.format)
