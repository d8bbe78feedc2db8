"""A probe that every model must pass when it is loaded: it attends as its mask says."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.decoder import Decoder
from latentwire.lm.masks.reading import Reading, Tap
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompts import CAUSAL

PROMPT, WIDTH = 4, 6
"""The probe has `WIDTH` tokens; the first `PROMPT` of them form the bidirectional block."""


@torch.no_grad()
def check(lm: Decoder) -> None:
    """Compare hidden states of six tokens under a causal and a prefix mask, with single tokens replaced.

    Replacing a token must change the states that may attend to it and no others.

    Args:
        lm: a model in evaluation mode, with our attention functions installed.

    Raises:
        UserError: the model attends to what the mask hides, does not attend to what it shows, computes its logits
            from the hidden states in a way that `LM.head` does not know, or does not run at all.
    """
    try:
        problem = _problem(lm)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # every family has modeling code of its own, and some cannot be called like this
        told = (str(error).strip().splitlines() or [""])[0][:160].rstrip(".")
        problem = (
            f"does not run as a decoder here ({type(error).__name__}: {told}), "
            "expected a decoder-only language model of Transformers"
        )
    if problem:
        raise UserError(f"model: {type(lm.model).__name__} {problem}.")


def _problem(lm: Decoder) -> str:
    """What is wrong with a model, as the end of a sentence; empty where nothing is."""
    vocabulary: int = lm.model.get_input_embeddings().weight.shape[0]  # type: ignore[index,assignment]
    tokens = [(7 * index + 3) % vocabulary for index in range(WIDTH)]
    other_prompt, other_answer = list(tokens), list(tokens)
    other_prompt[PROMPT - 1] = (tokens[PROMPT - 1] + 1) % vocabulary
    other_answer[-1] = (tokens[-1] + 1) % vocabulary
    rows = [tokens, other_prompt, other_answer]
    # One pass for all rows: on a CPU a pass takes the time of reading every weight, however few rows it has.
    masks = [[CAUSAL] * WIDTH, [0] * PROMPT + [CAUSAL] * (WIDTH - PROMPT)]
    states, attending = _hidden(lm, rows, masks)
    causal, prefix = states.chunk(2)
    if not bool(torch.isfinite(causal).all() and torch.isfinite(prefix).all()):
        return "gives NaN or infinity for a plain prompt, expected finite numbers"
    # Equal to rounding, not to the bit: experts work in groups whose sizes depend on every token of the batch.
    sees_ahead = [not close(causal[0, : PROMPT - 1], causal[1, : PROMPT - 1])]
    sees_ahead += [not close(hidden[0, :-1], hidden[2, :-1]) for hidden in (causal, prefix)]
    if any(sees_ahead):
        return (
            "attends to later tokens that its mask hides, so its scores would be wrong; "
            "expected a model that attends to what its mask shows"
        )
    if close(prefix[0, : PROMPT - 1], prefix[1, : PROMPT - 1]):
        return (
            "stays causal where its mask shows the whole prompt, "
            "expected a model that attends to what its mask shows"
        )
    layers = lm.model.config.get_text_config().num_hidden_layers
    if attending != layers:
        return (
            f"attends in {attending} layers and keeps keys of {layers}, "
            "expected a model in which every layer attends once in a pass"
        )
    own_states, own_logits = _by_itself(lm, tokens)
    if not close(lm.head(own_states), own_logits):
        return (
            "computes its logits from the hidden states in a way that is not known here, "
            "expected a linear head, scaled or soft-capped as its configuration says"
        )
    if not alike(causal[:1], own_states):
        return "reads a plain prompt otherwise than by itself, expected the same hidden states under a causal mask"
    return ""


def _hidden(lm: Decoder, rows: list[list[int]], masks: list[list[int]]) -> tuple[Tensor, int]:
    """Final hidden states `(masks * rows, WIDTH, D)`, mask after mask, and how many layers have attended."""
    blocks = [mask for mask in masks for _ in rows]
    prefix = Prefix.of_tokens(rows * len(masks), blocks, device=lm.device)
    ids = pad_rows(rows * len(masks), 0).to(lm.device)
    tap = Tap()
    states = lm.run(ids, prefix.columns, Reading(prefix.columns, tap=tap))
    return states, len(tap.keys)


def _by_itself(lm: Decoder, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Final hidden states `(1, WIDTH, D)` and logits `(1, WIDTH, V)` of one pass as Transformers runs it."""
    states: list[Tensor] = []
    hook = lm.model.get_decoder().register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    try:
        logits: Tensor = lm.model(input_ids=torch.tensor([tokens], device=lm.device), use_cache=False).logits
    finally:
        hook.remove()
    return states[0], logits


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors differ by rounding in the mean of squares: through a deep model in 16 bits, the largest
    difference of a million logits is no measure of it."""
    theirs = theirs.to(ours.device).float()
    tolerance = 1e-4 if ours.dtype == torch.float32 else 0.1
    return float((ours.float() - theirs).square().mean()) <= tolerance**2 * float(theirs.square().mean())


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors of one shape are equal up to rounding in the dtype of `theirs`, on any devices."""
    theirs = theirs.to(ours.device)
    scale = float(theirs.float().abs().max())
    tolerance = 1e-4 if theirs.dtype == torch.float32 else 3e-2
    return float((ours.float() - theirs.float()).abs().max()) <= tolerance * max(scale, 1e-6)
