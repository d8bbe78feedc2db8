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
from latentwire.lm.loading.load_settings import DeviceMap, Loading
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


class LM:
    """A decoder model with its tokenizer, which reads any `Prefix`.

    Construction installs our attention functions and checks, on a few tokens, that the model attends as its mask
    says and that `head` gives the model's own logits.

    Args:
        model: a causal language model of Transformers.
        tokenizer: the model's tokenizer.
        name: how the model is called in tables and error messages.
        prompt_format: how examples become prompts; the default format unless given.
        attention_kernel: `sdpa`, `eager`, `flex` or `split`; None takes what the model supports.

    Attributes:
        format: the prompt format.
        saved_format: the format saved beside weights or adapter, with which they were trained; None without one.
        prefix_tuning: a learned prefix that comes before everything the model reads, None without one.

    Raises:
        UserError: the model would not read right; one sentence says why.

    Example:
        >>> lm = LM.load("embedded:heron")
        >>> prompt = lm.tokenizer("Ada lives in Delft. Where does Ada live?")["input_ids"]
        >>> lm.generate(lm.prefill(Prefix.of_tokens([prompt], device=lm.device)))[0].text
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
        rows = int(self.embeddings().shape[0])
        self._rows = rows if len(tokenizer) > rows else None
        # Our attention functions do not read it; one that ignores `reading=` gives NaN and not a leak.
        self._no_mask = torch.full((1, 1, 1, 1), torch.nan, device=model.device)
        with evaluating(model):
            reading_probe.check(self)

    @classmethod
    def load(
        cls,
        spec: str | PathLike[str],
        loading: Loading | None = None,
        *,
        device: str | None = None,
        adapter: str | PathLike[str] | None = None,
        attention_kernel: str | None = None,
        dtype: torch.dtype | None = None,
        device_map: DeviceMap | None = None,
        bits: Literal[4, 8] | None = None,
        prompts: PromptSettings | None = None,
    ) -> LM:
        """Load a model and check that it reads right.

        FP8 and GGUF weights are dequantized. Of an image-text checkpoint the text side is loaded, as a causal
        language model of its own, and saved as such.

        Args:
            spec: `embedded:NAME`, a local folder, a `.gguf` file, a hub id or `ID@REVISION`.
            loading: precision, devices, bits, revision, memory, whether code of the model may run.
            device: where the model goes without a device map; the accelerator where there is one unless given.
            adapter: folder of a PEFT adapter. LoRA is merged into the weights; prefix tuning comes before them
                and freezes them.
            attention_kernel: `sdpa`, `eager`, `flex` or `split`; None takes what the model supports.
            dtype: short for `Loading(dtype=...)`, used where `loading` names none.
            device_map: short for `Loading(device_map=...)`, instead of `loading`.
            bits: short for `Loading(bits=...)`, instead of `loading`.
            prompts: changes to the prompt format that is saved beside the model.

        Raises:
            UserError: the model is not found, has no tokenizer, needs a package that is not installed or code that
                is not trusted; the adapter belongs to another model; weights are missing, extra, cut off, without
                a scale, not finite or pickled.

        Example:
            >>> lm = LM.load("Qwen/Qwen2.5-7B-Instruct", Loading(dtype="bfloat16", device_map="auto"))
            >>> lm = LM.load("embedded:heron", device="cpu")
        """
        if loading is None:
            loading = Loading(device_map=device_map, bits=bits)
        elif device_map is not None or bits is not None:
            raise ValueError("device_map and bits are fields of `loading`; give one of the two")
        loaded = weights.load(str(spec), loading.with_dtype(dtype), device=device, adapter=adapter)
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

        A model with a learned prefix is frozen: then the folder holds a PEFT adapter and the prompt format, to be
        loaded as `adapter` of the same model.

        Args:
            folder: the folder to create or to replace.

        Raises:
            RuntimeError: what was written does not reload as the same model; what was in `folder` is still there.

        Example:
            >>> lm.save(Path("my-model"))
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
        """The engine that runs the steps of `generate`; its `mode` says how."""
        return Engine(self)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings `(..., D)` of token ids `(...)`."""
        self._check_ids(ids)
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
            Final hidden states `(B, Q, D)`.

        Raises:
            UserError: a token has no embedding.
        """
        embeddings = content.is_floating_point()
        if not embeddings:
            self._check_ids(content)
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
        """Read a prefix and keep its keys and values; gradients flow.

        Args:
            prefix: P columns.
            dtype: of the keys; None is the model's own. 16-bit keys that are kept in float32 come out of another
                rotation as they were.

        Returns:
            Final hidden states `(B, P, D)`, and for every layer the keys (not rotated) and values of the P
            columns.

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
        """A second model that shares every weight of this one and can have adapters of its own.

        Toggling adapters between two passes of one module gives wrong gradients under activation checkpointing.

        Example:
            >>> adapters = inject(twin := lm.twin(), Lora(rank=8))
        """
        shared = {id(each): each for each in (*self.model.parameters(), *self.model.buffers())}
        model: PreTrainedModel = copy.deepcopy(self.model, dict(shared))
        return LM(model, self.tokenizer, name=self.name, prompt_format=self.format)

    def copied(self) -> LM:
        """A second model with weights of its own, equal to this one's; it needs the memory of one more model."""
        return LM(copy.deepcopy(self.model), self.tokenizer, name=self.name, prompt_format=self.format)

    def states(self, tokens: Tensor, positions: Tensor, step: Step) -> Tensor:
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

    def _check_ids(self, ids: Tensor) -> None:
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
        # `plain` here only: it changes the states of padding, which nothing reads after a prefill.
        reading, cache = replace(self._reading(prefix), plain=prefix.plain), DynamicCache()
        content = prefix.embeddings if prefix.ids is None else prefix.ids
        assert content is not None
        hidden = self.run(content, prefix.columns, reading, cache)
        logits = self.head(_at(hidden, prefix.columns.last))
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

    def score(self, prefilled: Prefilled, continuations: Continuations) -> list[list[Score]]:
        """Log-probabilities of token continuations after a prefill, each independent of the others.

        Args:
            prefilled: B rows, which stay as they were.
            continuations: for each row its continuations, as token ids.

        Returns:
            For each row a score per continuation.

        Example:
            >>> yes, no = (lm.tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" yes", " no"))
            >>> lm.score(lm.prefill(prefix), [[yes, no]])[0][0].logprob
        """
        return scoring.score(self, prefilled, continuations)

    def generate(
        self, prefilled: Prefilled, how: Decoding | None = None, seeds: Sequence[int] | None = None
    ) -> list[Generated]:
        """Continue every row; greedily unless `how` says otherwise.

        Args:
            prefilled: B rows, which stay as they were.
            how: how tokens are chosen and when a text ends.
            seeds: one per row, for sampling; 0, 1, 2, ... unless given.

        Example:
            >>> lm.generate(lm.prefill(prefix), Decoding(max_new_tokens=8))[0].text
        """
        return decoding.generate(self, prefilled, how or Decoding(), seeds)

    def generate_all(
        self,
        prefixes: Iterable[Prefix],
        how: Decoding | None = None,
        seeds: Iterable[int] | None = None,
        rows: int = 32,
    ) -> list[Generated]:
        """Continue every row of any number of prefixes, `rows` at a time: when one text ends, the next begins.

        Args:
            prefixes: of any kinds and lengths, taken one by one as rows become free.
            how: how tokens are chosen and when a text ends.
            seeds: one per row of all prefixes, for sampling; 0, 1, 2, ... unless given.
            rows: how many texts are continued at once.

        Returns:
            A text per row, in the order of the prefixes; each is what `generate` gives for it alone.
        """
        return decoding.generate_all(self, prefixes, how or Decoding(), seeds, rows)


def _at(hidden: Tensor, columns: Tensor) -> Tensor:
    """`(B, D)`: the state of each row of `(B, Q, D)` at the column of that row, `(B,)`."""
    return hidden[torch.arange(len(hidden), device=hidden.device), columns]
