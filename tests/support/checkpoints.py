"""Checkpoints as people have them, tiny and written by the test: FP8, image-text, GGUF, LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from tests.support.models import _COMMON, WINDOW, tiny_model, tiny_tokenizer

FP8 = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None, "dequantize": False}


def image_text_model(*, tied: bool = False) -> PreTrainedModel:
    """A tiny random Mistral 3: Pixtral for its images, Ministral 3 for its text."""
    text = CONFIG_MAPPING["ministral3"](**{**_COMMON, "sliding_window": WINDOW}).to_dict()
    vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = CONFIG_MAPPING["mistral3"](
        text_config=text,
        vision_config={**vision, "num_attention_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14},
        image_token_index=5,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval()


def write_plain(model: PreTrainedModel, folder: Path, tokenizer: Any = None) -> Path:
    """A folder as Transformers writes it."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def write_fp8(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """A folder in the shape that Mistral publishes: static FP8, one scale for each linear layer of the text side.

    Returns:
        The tensors of the file, which stand under the names they were published with.
    """
    write_plain(model, folder)
    file = folder / "model.safetensors"
    written: dict[str, Tensor] = {}
    for name, tensor in load_file(file).items():
        if not name.endswith("proj.weight") or "vision" in name:
            written[name] = tensor.to(torch.bfloat16)
            continue
        scale = (tensor.abs().max() / 448).to(torch.bfloat16)
        written[name] = (tensor / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        written[name + "_scale_inv"] = scale
        written[name.removesuffix("weight") + "activation_scale"] = torch.tensor(1.0, dtype=torch.bfloat16)
    save_file(written, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    kept = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
    config["quantization_config"] = {**FP8, "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config))
    return written


def dequantized(written: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the FP8 tensors of a file mean, in float32, by the names of a plain text model."""
    found = {}
    for name, tensor in written.items():
        if "scale" in name or "vision" in name or "multi_modal" in name:
            continue
        scale = written.get(name + "_scale_inv", torch.tensor(1.0))
        plain = name.replace("language_model.model.", "model.").replace("model.language_model.", "model.")
        found[plain.replace("language_model.lm_head", "lm_head")] = tensor.float() * scale.float()
    return found


SENTENCEPIECES = ["<pad>", "<s>", "</s>", "<unk>", "\n\n", "  "]
"""The first tokens of `write_gguf`'s SentencePiece vocabulary: four special ones and two of the user's."""


def sentencepieces() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a small SentencePiece vocabulary; longer pieces are not always better."""
    words = ["▁the", "▁heron", "▁he", "ron", "her", "he", "▁h", "on", "▁t", "th", "er", "ro", "in", "▁in", "▁12"]
    pieces = [*SENTENCEPIECES, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [3, 3, 3, 2, 4, 4] + [6] * 256
    scores = [0.0] * len(pieces)
    for rank, word in enumerate(words):
        pieces.append(word)
        scores.append(-float((7 * rank) % len(words)))
        types.append(1)
    for rank, letter in enumerate("▁abcdefghijklmnoprstuvwxyz.,12"):
        pieces.append(letter)
        scores.append(-100.0 - rank)
        types.append(1)
    return pieces, scores, types


def write_gguf(file: Path, *, tokenizer: str = "gpt2", **keys: Any) -> PreTrainedModel:
    """A tiny Llama as llama.cpp converts it, unquantized; returns the model that the file means.

    Args:
        tokenizer: `gpt2` or `llama`, the kind of the vocabulary, or another name.
        keys: further values of `tokenizer.ggml.*`.
    """
    import gguf

    pieces, scores, types = sentencepieces()
    sized = {"vocab_size": len(pieces)} if tokenizer == "llama" else {}
    model = tiny_model("llama", tie_word_embeddings=True, **sized)
    config: Any = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model(tokenizer)
    if tokenizer == "llama":
        writer.add_token_list(pieces)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_unk_token_id(3)
    else:
        core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
        vocabulary = sorted(core["vocab"], key=core["vocab"].__getitem__)
        writer.add_token_list(vocabulary + [f"<unused{at}>" for at in range(len(vocabulary), config.vocab_size)])
        writer.add_token_types([3 if at < 3 else 1 for at in range(config.vocab_size)])
        writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in core["merges"]])
    for key, value in keys.items():
        write = writer.add_bool if isinstance(value, bool) else writer.add_string
        write(f"tokenizer.ggml.{key}", value)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if f"{part}.weight" in name:  # llama.cpp rotates neighbours, Transformers halves
                rows, width = tensor.shape
                tensor = tensor.view(count, 2, rows // count // 2, width).transpose(1, 2).reshape(rows, width)
        kind = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(str(kind), tensor.detach().numpy().astype(np.float32).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_lora(model: PreTrainedModel, folder: Path, **options: Any) -> Any:
    """A random LoRA adapter of `model`, saved as PEFT does; returns the adapted model."""
    import peft

    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = peft.LoraConfig(
            r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "up_proj"], **options}
        )
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3)
    adapted.save_pretrained(str(folder))
    return adapted.eval()


def write_prefix(
    model: PreTrainedModel, folder: Path, tokens: int, weight: Tensor | None = None, **options: Any
) -> None:
    """A prefix-tuning adapter of `model`, saved as PEFT does; random unless `weight` is given."""
    import peft

    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, **options)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        tuned = peft.get_peft_model(model, config)
        for parameter in tuned.prompt_encoder.parameters():
            parameter.data.normal_()
    if weight is not None:
        tuned.prompt_encoder["default"].embedding.weight.data = weight.clone()
    tuned.save_pretrained(str(folder))
