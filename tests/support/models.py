"""Tiny random decoders and tokenizers, built in the test: no downloads, the same on every machine."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from latentwire.lm.model import LM

VOCABULARY = 320
WINDOW = 5
"""Sliding windows are smaller than the sequences of the tests, so that a lost window is seen."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_OF_FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "ministral3": ("ministral3", {"sliding_window": WINDOW}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 8, **_MIXED}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, **_MIXED}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1, **_MIXED}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": False}),
    "cohere": ("cohere", {}),
    "granite": ("granite", {}),
    "glm": ("glm", {}),
}
FAMILIES = ("llama", "qwen3", "mistral", "ministral3", "gemma3", "gpt_neox")
"""The families every claim is tested on; the others of `_OF_FAMILY` stand in single tests."""
SLIDING = ("mistral", "ministral3", "gemma3")


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random decoder of a family in float32, in evaluation mode, with weights large enough to matter."""
    return copy.deepcopy(_model(family, seed, json.dumps(changes)))


@cache
def _model(family: str, seed: int, changes: str) -> PreTrainedModel:
    kind, special = _OF_FAMILY[family]
    config = CONFIG_MAPPING[kind](**{**_COMMON, **special, **json.loads(changes)})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:  # norms and biases: away from one and zero, so that none can be lost
                parameter.data += 0.1 * torch.randn_like(parameter)
            elif "sinks" in name:
                parameter.data.normal_()
    return model.eval()


CORPUS = [
    "The heron stood in the shallow water and waited for the fish.",
    "Question: Where does Ada Brown live? Answer: in the old town by the river.",
    "Ada has 12 apples and gives 5 of them to Bob. #### 7",
    "one two three four five six seven eight nine ten  eleven   twelve",
]


def tiny_tokenizer(
    *, bos: bool = False, eos: bool = False, merge_blanks: bool = False, chat: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer.

    bos, eos: whether every text gets that token. merge_blanks: no pre-tokenization, so that tokens run
    across the boundary of prompt and answer (`"Answer:"` + `" in"` becomes one token `": in"`).
    """
    core = Tokenizer(BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merge_blanks)
    core.pre_tokenizer = level
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS * (3 if merge_blanks else 1), trainer)
    if bos or eos:
        pieces = [*(["<s>"] if bos else []), "$A", *(["</s>"] if eos else [])]
        core.post_processor = processors.TemplateProcessing(
            single=" ".join(pieces), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )
    tokenizer.chat_template = chat
    return tokenizer


def tiny_lm(family: str = "llama", *, seed: int = 0, kernel: str | None = None, **changes: Any) -> LM:
    """`tiny_model` and `tiny_tokenizer` as an `LM`."""
    return LM(tiny_model(family, seed=seed, **changes), tiny_tokenizer(), name=family, attention_kernel=kernel)
