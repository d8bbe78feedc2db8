"""The text decoder of an image-text checkpoint, as a causal language model of its own."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from latentwire.errors import UserError
from latentwire.lm.loading import reading_probe


def auto_class(config: PreTrainedConfig) -> Any:
    """The class of Transformers that loads a checkpoint of this configuration.

    It is `AutoModelForCausalLM`, or `AutoModelForImageTextToText` where only that one knows the model (Mistral 3,
    LLaVA) and its `text_config` is that of a causal language model.
    """
    text = getattr(config, "text_config", None)
    if (
        type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        and type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@torch.no_grad()
def take(whole: PreTrainedModel) -> PreTrainedModel:
    """The causal language model inside an image-text model, sharing its tensors.

    Nothing that runs, trains or saves the result knows of images: what is saved is the text model alone, under its
    own model type and without the vision tower.

    Args:
        whole: the image-text model, in evaluation mode.

    Raises:
        UserError: the text side is not such a model, or gives other logits alone than as part of the whole.
    """
    kind = type(whole).__name__
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    config: Any = decoder.config
    with torch.device("meta"):
        text: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    if type(decoder) is not type(text.get_decoder()):
        raise UserError(
            f"model: the text side of {kind} is a {type(decoder).__name__}, "
            f"expected the {type(text.get_decoder()).__name__} of a plain {type(text).__name__}."
        )
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(head)
    text.config = config
    # The whole model's own configuration decides whether the two are tied, whatever its text part says.
    tied = head.weight is whole.get_input_embeddings().weight
    config.tie_word_embeddings = tied
    text.all_tied_weights_keys = text.get_expanded_tied_weights_keys(all_submodels=False)
    text.generation_config = whole.generation_config
    if left := [name for name, tensor in text.named_parameters() if tensor.is_meta]:
        raise UserError(
            f"model: found no {left[0]} on the text side of {kind}, expected all weights of a language model."
        )
    ids = torch.arange(3, 10, device=whole.device)[None]
    if not reading_probe.close(text(input_ids=ids).logits, whole(input_ids=ids).logits):
        raise UserError(
            f"model: the text side of {kind} gives other logits alone than as part of the whole, "
            "expected a decoder that does not depend on the rest."
        )
    return text
