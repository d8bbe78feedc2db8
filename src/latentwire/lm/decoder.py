"""`Decoder`: the passes of a decoder model under any mask, with keys and values before its tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm import row_parts
from latentwire.lm.compiling import compiled
from latentwire.lm.decoding.decode_step import DecodeStep
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.loading.prefix_tuning import PrefixTuning
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import Columns, Enough, Memory, Reading, Tap
from latentwire.lm.norms import fused
from latentwire.lm.prefilling import PrefillGraphs
from latentwire.lm.prefix import Forced, Prefilled, Prefix
from latentwire.lm.recomputing import recomputing
from latentwire.lm.rotary import Rotary


class Decoder:
    """A decoder model and its forward passes; `LM` adds loading, saving, scoring and generating.

    Args:
        model: a causal language model of Transformers.
        tokenizer: the model's tokenizer.
        name: how the model is called in tables and error messages.
        attention_kernel: `sdpa`, `eager`, `flex` or `split`; None takes what the model supports.

    Attributes:
        prefix_tuning: a learned prefix that comes before everything the model reads, None without one.
        recomputes: where gradients flow, layers keep their input only and run again in the backward pass.
        compiles: passes without a cache run compiled layers.

    Raises:
        UserError: our attention functions cannot be installed in the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        attention_kernel: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.prefix_tuning: PrefixTuning | None = None
        self.recomputes = False
        self.compiles = False
        attention.install(model, attention_kernel)
        rows = int(self.embeddings().shape[0])
        self._rows = rows if len(tokenizer) > rows else None
        # Our attention functions do not read it; one that ignores `reading=` gives NaN and not a leak.
        self._no_mask = torch.full((1, 1, 1, 1), torch.nan, device=model.device)

    @property
    def device(self) -> torch.device:
        """Where the model is; the device of its first weights under a device map."""
        return self.model.device

    @cached_property
    def config(self) -> object:
        """The configuration of the text decoder."""
        return self.model.config.get_text_config()

    @property
    def max_positions(self) -> int:
        """How many positions a prompt with its answer may have; a learned prefix takes some of them.

        LongRoPE rotates in another way once a pass is longer than the original length, so that keys read before
        that would not fit those read after it: there the original length counts.
        """
        limit = int(getattr(self.config, "max_position_embeddings", 0) or 2**31)
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            limit = min(limit, int(rope["original_max_position_embeddings"]))
        return limit - self._shift

    @property
    def _shift(self) -> int:
        """How many virtual tokens come before position 0, by which every rotation is shifted."""
        return 0 if self.prefix_tuning is None else self.prefix_tuning.tokens

    @cached_property
    def rotary(self) -> Rotary:
        """The model's rotation of keys.

        Raises:
            UserError: the model rotates in a way not known here.
        """
        rotary = Rotary(self.model)
        rotary.probe()
        return rotary

    @cached_property
    def prefill_graphs(self) -> PrefillGraphs:
        """The sizes at which short prefixes are read, on a GPU as captured graphs; its `mode` says how."""
        return PrefillGraphs(self)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings `(..., D)` of token ids `(...)`."""
        self.check_ids(ids)
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def embeddings(self) -> Tensor:
        """The table of input embeddings, `(V, D)`."""
        table = self.model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return table

    @cached_property
    def logit_scale(self) -> float:
        """What the model multiplies its logits by: 1 but for Cohere's, Granite's and Falcon-H1's families."""
        factor = getattr(self.config, "logit_scale", None) or getattr(self.config, "lm_head_multiplier", None)
        return float(factor or 1) / float(getattr(self.config, "logits_scaling", None) or 1)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `(..., V)` of final hidden states `(..., D)`, scaled and soft-capped as the model does it."""
        logits: Tensor = self.model.get_output_embeddings()(hidden).to(hidden.device)
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def run(
        self, content: Tensor, columns: Columns, reading: Reading, cache: DynamicCache | None = None
    ) -> Tensor:
        """One forward pass of the decoder.

        Args:
            content: token ids `(B, Q)` or embeddings `(B, Q, D)`.
            columns: of the queries, `(B, Q)`; the last Q of `reading.columns`.
            reading: which columns may attend to which.
            cache: keys and values to read, to which those of the queries are added; the model then runs in
                evaluation mode. None reads without a cache, which is how models are trained.

        Returns:
            Final hidden states `(B, Q, D)`; `(B, Q, 0)` where a tap ends the pass before them.

        Raises:
            UserError: a token has no embedding.
        """
        if not content.is_floating_point():
            self.check_ids(content)
        rows = row_parts.parts(self.model.get_decoder(), content, reading, cache)
        if len(rows) > 1:
            return row_parts.run_by_parts(self.passed, rows, content, columns, reading, cache)
        return self.passed(content, columns, reading, cache)

    def passed(self, content: Tensor, columns: Columns, reading: Reading, cache: Any = None) -> Tensor:
        """As `run`, for tokens known to have embeddings: nothing here waits for the device."""
        decoder: nn.Module = self.model.get_decoder()
        embeddings = content.is_floating_point()
        if self.prefix_tuning is not None:
            reading = self.prefix_tuning.before(reading)
        recomputes = self.recomputes and cache is None and torch.is_grad_enabled()
        with (
            nullcontext() if cache is None else evaluating(self.model),
            self._quick(decoder, cache),
            recomputing(decoder) if recomputes else nullcontext(),
            suppress(Enough),
        ):
            hidden: Tensor = decoder(
                input_ids=None if embeddings else content,
                inputs_embeds=content if embeddings else None,
                attention_mask=self._no_mask,
                position_ids=columns.positions + self._shift,
                past_key_values=cache,
                use_cache=cache is not None,
                reading=reading,
            ).last_hidden_state
            return hidden.to(content.device)
        return torch.empty(*content.shape[:2], 0, device=content.device)

    def _quick(self, decoder: nn.Module, cache: Any) -> AbstractContextManager[None]:
        """How a pass runs in few operations."""
        if cache is None and self.compiles:
            return compiled(decoder)
        # A layer that runs again later, ours or in a model in training Transformers' way, would have other norms.
        again = cache is None and (self.recomputes or decoder.training)
        return nullcontext() if again else fused(decoder)

    def memorize(
        self, prefix: Prefix, dtype: torch.dtype | None = None, *, plain: bool = False, states: bool = True
    ) -> tuple[Tensor, Memory]:
        """Read a prefix and keep its keys and values; gradients flow.

        Args:
            prefix: P columns.
            dtype: of the keys; None is the model's own. 16-bit keys that are kept in float32 come out of another
                rotation as they were.
            plain: a prefix that is `plain` may be read by a kernel's own causal mask, since the caller reads no
                states of padding.
            states: whether the final hidden states are wanted. Where they are not and nobody waits for them, the
                pass ends with the last layer's keys and values, on which the rest of it has no influence.

        Returns:
            Final hidden states `(B, P, D)`, `(B, P, 0)` where they were not computed, and for every layer the keys
            (not rotated) and values of the P columns.

        Raises:
            UserError: longer than the model's positions, or the model rotates keys in a way not known here.
        """
        last = (
            None if states or self._waited_for else int(self.model.config.get_text_config().num_hidden_layers) - 1
        )
        reading = replace(self._reading(prefix), tap=(tap := Tap(last=last)), plain=plain and prefix.plain)
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        try:
            hidden = self.run(content, prefix.columns, reading)
            layers = range(len(tap.keys))
            rotated, values = [tap.keys[layer] for layer in layers], tuple(tap.values[layer] for layer in layers)
        finally:
            tap.close()
        found = [each.to(dtype or each.dtype) for each in rotated]
        keys = self.rotary.rotate_all(found, prefix.columns.positions + self._shift, back=True)
        return hidden, Memory(keys, values, prefix.columns)

    @property
    def _waited_for(self) -> bool:
        """Whether a pass must not end early: gradients, compiled layers, hooks, or weights on several devices."""
        model = self.model
        return (
            torch.is_grad_enabled()
            or self.compiles
            or hasattr(model, "hf_device_map")
            or row_parts.watched(model.get_decoder())
        )

    def states(self, tokens: Tensor, positions: Tensor, step: DecodeStep) -> Tensor:
        """Final hidden states `(B, 1, D)` of one token per row, `(B, 1)`, in a step of decoding."""
        decoder: nn.Module = self.model.get_decoder()
        hidden: Tensor = decoder(
            input_ids=tokens,
            attention_mask=self._no_mask,
            position_ids=positions,
            past_key_values=step,
            use_cache=True,
            reading=step,
        ).last_hidden_state
        return hidden

    def _reading(self, prefix: Prefix) -> Reading:
        # Looked at only where it can be too long: asking for the last position waits for an accelerator.
        if not (prefix.plain and prefix.memory is None and prefix.columns.width <= self.max_positions):
            self._check_length(int(prefix.next_position.max()))
        memory = None if prefix.memory is None else self._rotated(prefix.memory)
        return Reading(prefix.columns, prefix.layers, memory)

    def _rotated(self, memory: Memory) -> Memory:
        layers = len(memory.keys)
        if layers != self.model.config.get_text_config().num_hidden_layers:
            raise ValueError(f"memory holds {layers} layers, the model has another number")
        return self.rotary.memory(memory, self._shift)

    def _check_length(self, positions: int) -> None:
        if positions > self.max_positions:
            raise UserError(
                f"prompt: found {positions:,} tokens, expected at most {self.max_positions:,}, "
                f"which is what {self.name} was built for."
            )

    def check_ids(self, ids: Tensor) -> None:
        """Raise `UserError` for a token that has no embedding."""
        # Looked at only where it can go wrong: asking for the greatest id waits for an accelerator.
        if self._rows is None or not ids.numel() or (greatest := int(ids.max())) < self._rows:
            return
        token = self.tokenizer.convert_ids_to_tokens(greatest)
        raise UserError(
            f"tokenizer: found the token {token!r} with the id {greatest}, and {self.name} has {self._rows} "
            "embeddings; expected a model whose embedding was resized with its tokenizer."
        )

    @torch.no_grad()
    def prefill(self, prefix: Prefix) -> Prefilled:
        """Read a prefix once, for any number of continuations.

        Raises:
            UserError: the prefix is longer than the model's positions, or a token has no embedding.

        Example:
            >>> prefilled = lm.prefill(Prefix.of_tokens([prompt], device=lm.device))
        """
        # `plain` changes the states of padding, which nothing reads after a prefill.
        reading, cache = replace(self._reading(prefix), plain=prefix.plain), DynamicCache()
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        try:
            if (made := self.prefill_graphs.read(prefix, reading)) is not None:
                logits, cache = made
            else:
                hidden = self.run(content, prefix.columns, reading, cache)
                logits = self.head(_at(hidden, prefix.columns.last))
        except torch.OutOfMemoryError:
            self.prefill_graphs.release()  # whoever tries again with less needs the room
            raise
        return Prefilled(cache=cache, logits=logits, reading=reading, next_position=prefix.next_position)

    def continue_hidden(self, prefilled: Prefilled, ids: Tensor, columns: Columns) -> Tensor:
        """Hidden states `(B, Q, D)` of tokens `(B, Q)` read after a prefill, which stays as it was."""
        self._check_length(int(columns.end.max()))
        return self.run(ids, columns, prefilled.reading.extend(columns), prefilled.fork())

    @torch.no_grad()
    def read_on(self, prefilled: Prefilled, ids: Tensor, columns: Columns) -> Prefilled:
        """A new prefill that has read tokens `(B, Q)` after the old one, which stays as it was.

        A row whose columns are all padding keeps its logits and its next position.
        """
        self._check_length(int(columns.end.max()))
        reading, cache = prefilled.reading.extend(columns), prefilled.fork()
        hidden = self.run(ids, columns, reading, cache)
        logits = self.head(_at(hidden, columns.last))
        return Prefilled(
            cache=cache,
            logits=torch.where(columns.valid.any(1)[:, None], logits, prefilled.logits),
            reading=reading,
            next_position=torch.maximum(prefilled.next_position, columns.end),
        )

    def append(self, prefilled: Prefilled, ids: Tensor, live: Tensor | None = None) -> Prefilled:
        """A new prefill that has read one token per row after the old one, which stays as it was.

        Args:
            prefilled: B rows.
            ids: `(B, 1)`.
            live: `(B, 1)` bool, the rows that read their token; None for all.
        """
        valid = torch.ones_like(ids).bool() if live is None else live
        positions = torch.where(valid, prefilled.next_position[:, None], 0)
        return self.read_on(prefilled, ids, Columns.of(valid, positions))

    def forced(self, prefix: Prefix, answer_ids: Tensor) -> Forced:
        """Read prefix and answer in one pass without a cache (teacher forcing); gradients flow.

        Args:
            prefix: B rows.
            answer_ids: `(B, A)`, -100 after the end of an answer.

        Returns:
            The hidden states that predict the answer tokens; logits of all positions are never computed.

        Raises:
            UserError: prefix and answer are longer than the model's positions.

        Example:
            >>> forced = lm.forced(prefix, torch.tensor([answer]))
            >>> nats = torch.nn.functional.cross_entropy(lm.head(forced.hidden)[0], forced.labels[0])
        """
        # The last answer token predicts nothing, unless it may be seen by those before it.
        read = answer_ids if prefix.leaky else answer_ids[:, :-1]
        valid = (answer_ids if prefix.leaky else answer_ids[:, 1:]) != -100
        steps = torch.arange(read.shape[1], device=read.device)
        positions = torch.where(valid, prefix.next_position[:, None] + steps, 0)
        # A leaky answer joins the block of the first column; other answers are read causally.
        block = prefix.columns.blocks[:, :1].expand_as(positions) if prefix.leaky else None
        columns = prefix.columns.append(Columns.of(valid, positions, block))
        self._check_length(int(columns.end.max()))
        reading = self._reading(prefix)
        reading = Reading(columns, prefix.layers, reading.memory)
        ids = read.clamp_min(0)
        if prefix.ids is not None:
            content = torch.cat([prefix.ids, ids], 1)
        else:
            assert prefix.embeddings is not None
            content = torch.cat([prefix.embeddings, self.embed(ids).to(prefix.embeddings.dtype)], 1)
        hidden = self.run(content, columns, reading)
        width = prefix.columns.width
        after = width + torch.arange(answer_ids.shape[1] - 1, device=read.device).expand(len(read), -1)
        at = torch.cat([prefix.columns.last[:, None], after], 1)
        return Forced(hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1])), answer_ids)


def _at(hidden: Tensor, columns: Tensor) -> Tensor:
    """`(B, D)`: the state of each row of `(B, Q, D)` at the column of that row, `(B,)`."""
    return hidden[torch.arange(len(hidden), device=hidden.device), columns]
