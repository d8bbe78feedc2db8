"""`LM`: one decoder model with its tokenizer. Everything that runs the model is here."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.errors import UserError
from latentwire.lm import decoding
from latentwire.lm.decoding import Decoding, Generated
from latentwire.lm.decoding.engine import Engine
from latentwire.lm.decoding.step import Step
from latentwire.lm.loading import adapter_files, prefix_adapters, reading_probe, weights
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.loading.prefix_tuning import PrefixTuning
from latentwire.lm.masks import attention
from latentwire.lm.masks.reading import Columns, Memory, Reading, Tap
from latentwire.lm.prefix import Forced, Prefilled, Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.lm.rotary import Rotary
from latentwire.lm.scoring import continuations as scoring
from latentwire.lm.scoring.continuations import Continuations, Score

if TYPE_CHECKING:
    from os import PathLike

    from latentwire.lm.loading.weights import DeviceMap


class LM:
    """A decoder model that reads any `Prefix`.

    Construction installs our attention functions and checks, on a few tokens, that the model
    reads under a mask as the mask says and that its head gives its own logits.

    Attributes:
        format: how its prompts are worded. saved_format: the format saved beside weights or adapter, with which
            they were trained; None where there is none.
        prefix_tuning: stands before everything that is read; None unless an adapter brings one.

    Raises:
        UserError: the model cannot be read right; one sentence says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "model",
        prompt_format: PromptFormat | None = None,
        attention_kernel: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.format = prompt_format or PromptFormat()
        self.saved_format: PromptFormat | None = None
        self.prefix_tuning: PrefixTuning | None = None
        attention.install(model, attention_kernel)
        # No implementation of ours reads it; one that ignores `reading=` turns it into NaN, not into a leak.
        self._no_mask = torch.full((1, 1, 1, 1), torch.nan, device=model.device)
        with evaluating(model):
            reading_probe.check(self)

    @classmethod
    def load(
        cls,
        spec: str | PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        device_map: DeviceMap | None = None,
        adapter: str | PathLike[str] | None = None,
        attention_kernel: str | None = None,
        bits: Literal[4] | None = None,
        prompts: PromptSettings | None = None,
    ) -> LM:
        """Load `embedded:NAME`, a local folder, a `.gguf` file or a hub id.

        FP8 and GGUF weights are dequantized to `dtype`. Of an image-text checkpoint the text side is loaded, as a
        causal language model of its own, and saved as such.

        Args:
            dtype: float32 on a CPU and bfloat16 on an accelerator unless given.
            device: the accelerator where there is one unless given.
            device_map: where each module goes, as Transformers takes it, instead of `device`.
            adapter: folder of a PEFT adapter: LoRA, merged into the weights, or prefix tuning, which stands before
                them while they are frozen.
            attention_kernel: `sdpa`, `eager`, `flex` or `split`; None takes what the model supports.
            bits: round the weights to 4 bits (NF4, by bitsandbytes, on a GPU); such a model only reads.
            prompts: changes to the prompt format that is saved beside the model.

        Raises:
            UserError: not found, no tokenizer, an adapter that is not the model's, a package that a quantization
                needs is not installed, weights missing, extra, cut off, without scale, not finite or pickled.
        """
        loaded = weights.load(
            str(spec), dtype=dtype, device=device, device_map=device_map, adapter=adapter, bits=bits
        )
        lm = cls(
            loaded.model,
            loaded.tokenizer,
            name=str(spec),
            prompt_format=loaded.prompt_format,
            attention_kernel=attention_kernel,
        )
        lm.saved_format = loaded.saved_format
        if prompts is not None:
            lm.format = prompts.over(lm.format, lm)
        if adapter is not None and adapter_files.kind(adapter) == adapter_files.PREFIX_TUNING:
            lm.prefix_tuning = prefix_adapters.load(lm, adapter)
        return lm

    def save(self, folder: Path) -> None:
        """Write weights, tokenizer and prompt format; the folder appears only once it reloads equal.

        A model behind a learned prefix is frozen: then the folder is a PEFT adapter and a prompt format, to be
        loaded as `adapter` of the same model.
        """
        if "engine" in vars(self):
            self.engine.release()  # safetensors refuses weights that are views of a merged one
        if self.prefix_tuning is not None:
            prefix_adapters.save(self, self.prefix_tuning, self.format, folder)
        else:
            weights.save(self.model, self.tokenizer, self.format, folder)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @cached_property
    def config(self) -> object:
        return self.model.config.get_text_config()

    @property
    def max_positions(self) -> int:
        """How many positions the model was built for, all rotated alike; a learned prefix takes its own of them.

        LongRoPE rotates in another way once a pass is longer than the original length, so that keys read before
        would not fit those read after: there the original length counts.
        """
        limit = int(getattr(self.config, "max_position_embeddings", 0) or 2**31)
        rope = getattr(self.config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":
            limit = min(limit, int(rope["original_max_position_embeddings"]))
        return limit - self._shift

    @property
    def _shift(self) -> int:
        """By how much the model rotates further than positions say: virtual tokens stand before the first."""
        return 0 if self.prefix_tuning is None else self.prefix_tuning.tokens

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's, the generation configuration's and the prompt format's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        known = frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)
        return known | self.format.end_ids(self)

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
    def engine(self) -> Engine:
        """What runs the steps of `generate`; its `mode` says how."""
        return Engine(self)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings `(..., D)` of token ids."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def embeddings(self) -> Tensor:
        """The table of input embeddings, `(V, D)`."""
        table = self.model.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        return table

    def head(self, hidden: Tensor) -> Tensor:
        """Logits `(..., V)` of final hidden states `(..., D)`."""
        logits: Tensor = self.model.get_output_embeddings()(hidden).to(hidden.device)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    def run(
        self, content: Tensor, columns: Columns, reading: Reading, cache: DynamicCache | None = None
    ) -> Tensor:
        """Final hidden states `(B, Q, D)` of token ids `(B, Q)` or embeddings `(B, Q, D)`.

        Args:
            columns: of the queries; the last of `reading.columns`.
            cache: grows by the queries, in evaluation mode whatever the model's own; None reads without one,
                which is the way to train.
        """
        embeddings = content.is_floating_point()
        if self.prefix_tuning is not None:
            reading = self.prefix_tuning.before(reading)
        decoder: nn.Module = self.model.get_decoder()
        with nullcontext() if cache is None else evaluating(self.model):
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

    def memorize(self, prefix: Prefix, dtype: torch.dtype | None = None) -> tuple[Tensor, Memory]:
        """Read a prefix for what it leaves behind; gradients flow.

        Args:
            dtype: of the keys; None is the model's own. Keys of 16 bits that are kept in float32 are again what
                they were once they are rotated.

        Returns:
            Final hidden states `(B, P, D)`, and every layer's keys (not rotated) and values of the P columns.

        Raises:
            UserError: longer than the model's positions, or the model rotates keys in a way not known here.
        """
        reading = replace(self._reading(prefix), tap=(tap := Tap()))
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        hidden = self.run(content, prefix.columns, reading)
        positions = prefix.columns.positions
        layers = range(len(tap.keys))
        found = [tap.keys[layer].to(dtype or tap.keys[layer].dtype) for layer in layers]
        at = positions + self._shift
        keys = self.rotary.rotate_all(found, at, back=True)
        return hidden, Memory(keys, tuple(tap.values[layer] for layer in layers), prefix.columns)

    def twin(self) -> LM:
        """A second module that shares every weight of this one, for adapters of its own to be put into.

        Toggling adapters between two passes of one module gives wrong gradients under activation checkpointing.
        """
        shared = {id(each): each for each in (*self.model.parameters(), *self.model.buffers())}
        model: PreTrainedModel = copy.deepcopy(self.model, dict(shared))
        return LM(model, self.tokenizer, name=self.name, prompt_format=self.format)

    def copied(self) -> LM:
        """A second model with weights of its own, equal to this one's; it needs the memory of one more model."""
        return LM(copy.deepcopy(self.model), self.tokenizer, name=self.name, prompt_format=self.format)

    def states(self, tokens: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Final hidden states `(B, 1, D)` of one token a row, `(B, 1)`, read in a decoding step."""
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

    @torch.no_grad()
    def prefill(self, prefix: Prefix) -> Prefilled:
        """Read a prefix once, for any number of continuations.

        Raises:
            UserError: it is longer than the model's positions.
        """
        # Here alone: states of padding, which the kernel's own causal mask gives other numbers, are never read.
        reading, cache = replace(self._reading(prefix), plain=prefix.plain), DynamicCache()
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        hidden = self.run(content, prefix.columns, reading, cache)
        logits = self.head(_at(hidden, prefix.columns.last))
        return Prefilled(cache=cache, logits=logits, reading=reading, next_position=prefix.next_position)

    def continue_hidden(self, prefilled: Prefilled, ids: Tensor, columns: Columns) -> Tensor:
        """Hidden states `(B, Q, D)` of tokens read behind a prefill, which stays as it was."""
        self._check_length(int(columns.end.max()))
        return self.run(ids, columns, prefilled.reading.extend(columns), prefilled.fork())

    @torch.no_grad()
    def read_on(self, prefilled: Prefilled, ids: Tensor, columns: Columns) -> Prefilled:
        """A new prefill with tokens `(B, Q)` behind the old one, which stays as it was.

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
        """A new prefill with one token a row, `(B, 1)`, behind the old one, which stays as it was.

        Args:
            live: `(B, 1)`, the rows that read their token; the others stay where they are. None for all.
        """
        valid = torch.ones_like(ids).bool() if live is None else live
        positions = torch.where(valid, prefilled.next_position[:, None], 0)
        return self.read_on(prefilled, ids, Columns.of(valid, positions))

    def forced(self, prefix: Prefix, answer_ids: Tensor) -> Forced:
        """Read prefix and answer in one pass without a cache; gradients flow to whatever wants them.

        Args:
            answer_ids: `(B, A)`, -100 behind an answer's end.

        Returns:
            The hidden states that predict the answer tokens. Full logits are never made.
        """
        # The last answer token predicts nothing, unless it may be seen by those before it.
        read = answer_ids if prefix.leaky else answer_ids[:, :-1]
        valid = (answer_ids if prefix.leaky else answer_ids[:, 1:]) != -100
        steps = torch.arange(read.shape[1], device=read.device)
        positions = torch.where(valid, prefix.next_position[:, None] + steps, 0)
        # Whoever leaks joins the block of the first column; the others read causally.
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
        behind = width + torch.arange(answer_ids.shape[1] - 1, device=read.device).expand(len(read), -1)
        at = torch.cat([prefix.columns.last[:, None], behind], 1)
        return Forced(hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1])), answer_ids)

    def score(self, prefilled: Prefilled, continuations: Continuations) -> list[list[Score]]:
        """Log-probabilities of token continuations behind a prefill, each independent of the others."""
        return scoring.score(self, prefilled, continuations)

    def generate(
        self, prefilled: Prefilled, how: Decoding | None = None, seeds: Sequence[int] | None = None
    ) -> list[Generated]:
        """Continue every row; greedy unless `how` says otherwise."""
        return decoding.generate(self, prefilled, how or Decoding(), seeds)

    def generate_all(
        self,
        prefixes: Iterable[Prefix],
        how: Decoding | None = None,
        seeds: Iterable[int] | None = None,
        rows: int = 32,
    ) -> list[Generated]:
        """Continue every row of any number of prefixes, `rows` at a time: where one ends, the next begins.

        Args:
            prefixes: of any kinds and lengths, taken one by one as rows become free.
            seeds: one a row of them all; 0, 1, 2, ... without.

        Returns:
            In the order of the prefixes, each what `generate` gives for it alone.
        """
        return decoding.generate_all(self, prefixes, how or Decoding(), seeds, rows)


def _at(hidden: Tensor, columns: Tensor) -> Tensor:
    """`(B, D)`: of states `(B, Q, D)`, each row's at its own column."""
    return hidden[torch.arange(len(hidden), device=hidden.device), columns]
