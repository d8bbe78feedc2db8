"""`LM`: one decoder model with its tokenizer, loaded and saved, scoring and generating."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latentwire.lm import decoding
from latentwire.lm.decoder import Decoder
from latentwire.lm.decoding import Decoding, Generated
from latentwire.lm.decoding.engine import Engine
from latentwire.lm.loading import adapter_files, prefix_adapters, reading_probe, weights
from latentwire.lm.loading.eval_mode import evaluating
from latentwire.lm.loading.load_settings import DeviceMap, Loading
from latentwire.lm.prefix import Prefilled, Prefix
from latentwire.lm.prompt_format import PromptFormat
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.lm.scoring import continuations as scoring
from latentwire.lm.scoring.continuations import Continuations, Score

if TYPE_CHECKING:
    from os import PathLike


class LM(Decoder):
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
        saved_format: the format saved beside weights or adapter that they were trained with; None without one.
        prefix_tuning: a learned prefix that comes before everything the model reads, None without one.

    Raises:
        UserError: the model would not read right; one sentence says why.

    Example:
        >>> lm = LM.load("embedded:heron")
        >>> prompt = lm.tokenizer("Ada lives in Delft. Where does Ada live?")["input_ids"]
        >>> len(lm.generate(lm.prefill(Prefix.of_tokens([prompt], device=lm.device))))
        1
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
        super().__init__(model, tokenizer, name=name, attention_kernel=attention_kernel)
        self.format = prompt_format or PromptFormat()
        self.saved_format: PromptFormat | None = None
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
        lm.saved_format = loaded.trained_format
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
            trained = self.saved_format is not None
            weights.save(self.model, self.tokenizer, self.format, folder, trained=trained)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's, the generation configuration's and the prompt format's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ids = configured if isinstance(configured, list) else [configured]
        known = frozenset(i for i in [*ids, self.tokenizer.eos_token_id] if i is not None)
        return known | self.format.end_ids(self)

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the steps of `generate`; its `mode` says how."""
        return Engine(self)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

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
