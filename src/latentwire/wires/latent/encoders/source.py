"""The `source` encoder: latents of what a frozen model computed of the context (a bridge)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from latentwire.lm.loading.tokenizing import Tokenizing
from latentwire.lm.model import LM
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.tapping import chosen_layers, depth, tapping
from latentwire.wires.latent.align import Spans, marked, overlaps, remembered
from latentwire.wires.latent.drafts import Drafting
from latentwire.wires.latent.encoders.encoder import Encoder
from latentwire.wires.latent.message import Latents
from latentwire.wires.latent.select import Anchors, Select, spread
from latentwire.wires.latent.translators import CrossConfig, States, TranslatorKind


class SourceConfig(Drafting):
    """A frozen source model reads the context, and a translator makes latents of what it computed.

    Attributes:
        layers: the layers after which states are taken, counted from 0, negative ones from the end. None takes the
            upper half, or all layers where nothing translates.
        states: hidden states, or keys and values.
        unrotate: keys lose their rotation, so that they say what a token is and not where it stands.
        even: states of every layer and token are brought to one size, which a linear map cannot undo.
        mask: how the source reads the context.
        align: the model to whose tokens the states are brought, by the characters that they stand for. None leaves
            them at the source's own tokens.
        select: which columns become latents.
        width: of a latent.
        translator: what makes vectors of the states; None sends them as they are, keys and values layer by layer.
        draft, draft_tokens: see `Drafting`.
    """

    kind: Literal["source"] = "source"
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    states: Literal["hidden", "keys"] = "hidden"
    unrotate: bool = True
    even: bool = True
    mask: Literal["causal", "prefix"] = "causal"
    align: str | None = None
    select: Select = Anchors()
    width: int = Field(default=256, ge=1)
    translator: TranslatorKind | None = CrossConfig()

    @model_validator(mode="after")
    def _slots_are_translated(self) -> SourceConfig:
        if self.translator is None and self.select.slots:
            raise ValueError("select: found slots without a translator, expected anchors or mean")
        return self

    @property
    def count(self) -> int | None:
        return self.select.slots or None

    @property
    def described(self) -> str:
        return super().described + (f" with the translator {self.translator.kind}" if self.translator else "")

    @property
    def counts_tokens_of(self) -> str | None:
        return self.align

    def token_by_token(self, source: str) -> str | None:
        return (self.align or source) if self.select.every_column else None

    def build(self, lm: LM) -> SourceEncoder:
        return SourceEncoder(self, lm)


@dataclass(frozen=True, eq=False)
class SourceRead:
    """What the source computed of B contexts.

    Attributes:
        length: `(B,)`, how many columns each context has.
    """

    states: States
    length: Tensor


class SourceEncoder(Encoder):
    """Reads contexts with a frozen source. Only the translator is trained and belongs to the wire."""

    def __init__(self, settings: SourceConfig, lm: LM) -> None:
        super().__init__()
        self.settings, self._lm = settings, lm
        self._heads: list[tuple[int, int]] = []
        count = depth(lm)
        default = range(0 if settings.translator is None else count // 2, count)
        self._layers = chosen_layers(default if settings.layers is None else settings.layers, count)
        self._counted = None if settings.align is None else Tokenizing.load(settings.align)
        self._wanted = None if self._counted is None else marked(self._counted.format, self._counted)
        self._marked, self._before = marked(lm.format, lm), remembered(lm.format, lm)
        self.drafts = settings.drafts(lm)
        read, made = self.read(["A few words."]), settings.translator
        width, slots = read.states.content.shape[-1], settings.select.slots
        self.translator = None if made is None else made.build(width, settings.width, slots).to(lm.device)

    def forward(self, contexts: Sequence[str]) -> Latents:
        """Latents of B contexts, M vectors each; those of one never depend on another's."""
        return self.translate(self.read(contexts))

    def translate(self, read: SourceRead) -> Latents:
        """The latents of contexts that were read; without a translator, the states as they are."""
        states = read.states
        latents = Latents(valid=states.real, positions=states.places, length=read.length)
        if self.translator is not None:
            return replace(latents, vectors=self.translator(states))
        assert states.weights is not None
        plain = states.weights @ states.content
        if self.settings.states == "hidden":
            return replace(latents, vectors=plain)
        heads = [self._heads[layer] for layer in self._layers for _ in range(2)]
        parts = plain.split([count * width for count, width in heads], -1)
        each = [part.unflatten(-1, shape).transpose(1, 2) for part, shape in zip(parts, heads, strict=True)]
        return replace(latents, keys=tuple(each[0::2]), values=tuple(each[1::2]))

    def align_to(self, form: PromptFormat) -> None:
        """Count the other model's tokens as in prompts of this format, instead of its files' own."""
        assert self._counted is not None
        self._wanted = marked(form, self._counted)

    def ahead(self, contexts: Sequence[str]) -> None:
        """Tokenize contexts that will be read soon; may run in another thread. Drafts are not written ahead."""
        for batch in () if self.drafts else contexts:
            if self._wanted is None:
                self._before(batch)
            else:
                self._marked(batch)
                self._wanted(batch)

    def keep_drafts(self, keeps: bool) -> None:
        self.drafts.keeps = keeps

    def counted(self, context: str) -> list[int]:
        """The tokens of which each can become a latent: the source's own, or those of the model it aligns to."""
        return (self._wanted or self._marked)(self.drafts([context])[0])[0]

    @torch.no_grad()
    def read(self, contexts: Sequence[str]) -> SourceRead:
        """What the translator gets; no gradient flows into it."""
        contexts = self.drafts(contexts)
        content, valid = self._columns(contexts)
        length, slots = valid.sum(1), self.settings.select.slots
        if slots:
            weights, places = None, spread(length, slots)
        else:
            weights = self.settings.select.weights(valid)
            column = torch.arange(weights.shape[-1], device=weights.device)
            places = ((weights > 0) * column).amax(-1)
        return SourceRead(States(content, valid, weights, places, tuple(contexts)), length)

    def spans(self, contexts: Sequence[str]) -> list[Spans]:
        """Where the columns of each context begin and end, in characters of the context."""
        return self._spans(self.drafts(contexts))

    def _spans(self, read: Sequence[str]) -> list[Spans]:
        return [(self._wanted or self._marked)(each)[1] for each in read]

    def _columns(self, contexts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States `(B, T, S)`, and which columns are no padding `(B, T)`."""
        lm = self._lm
        if self._wanted is None:
            return self._states([self._before(each) for each in contexts])
        found = [self._marked(each) for each in contexts]
        content, _ = self._states([ids for ids, _ in found])
        mixed = overlaps(self._spans(contexts), [spans for _, spans in found], lm.device, self.multiple)
        return mixed @ content, mixed.any(-1)

    def _states(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """States `(B, T, S)` in float32, layers evened for a translator, and which columns are no padding."""
        lm, blocks = self._lm, None
        if self.settings.mask == "prefix":
            blocks = [[0] * len(row) for row in rows]
        prefix = Prefix.of_tokens(rows, blocks, device=lm.device, multiple=self.multiple)
        valid = prefix.columns.valid
        with tapping(lm, self._layers) as hidden:
            memory = lm.memorize(prefix)[1]
        if self.settings.states == "hidden":
            parts = [hidden[layer].to(lm.device) for layer in self._layers]
        else:
            parts = []
            for layer in self._layers:
                key = memory.keys[layer]
                if not self.settings.unrotate:
                    key = lm.rotary.rotate(layer, key, prefix.columns.positions)
                parts += [each.transpose(1, 2).flatten(2).to(lm.device) for each in (key, memory.values[layer])]
            self._heads = [(each.shape[1], each.shape[3]) for each in memory.keys]
        # Padding may hold anything, even NaN.
        parts = [each.float().masked_fill(~valid[..., None], 0) for each in parts]
        if self.settings.even and self.settings.translator is not None:
            parts = [F.layer_norm(each, each.shape[-1:]) for each in parts]
        return torch.cat(parts, -1), valid
