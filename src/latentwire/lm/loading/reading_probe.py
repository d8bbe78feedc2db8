"""A probe that every model must pass when it is loaded: it attends as its mask says."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.errors import UserError
from latentwire.lm.masks.reading import Reading
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.reader import Reader

PROMPT, WIDTH = 4, 6
"""The probe has `WIDTH` tokens; the first `PROMPT` of them form the bidirectional block."""


@torch.no_grad()
def check(lm: Reader) -> None:
    """Compare hidden states of six tokens under a causal and a prefix mask, with single tokens replaced.

    Replacing a token must change the states that may attend to it and no others.

    Args:
        lm: a model in evaluation mode, with our attention functions installed.

    Raises:
        UserError: the model attends to what the mask hides, does not attend to what it shows, or computes its
            logits from the hidden states in a way that `LM.head` does not know.
    """
    vocabulary: int = lm.model.get_input_embeddings().weight.shape[0]  # type: ignore[index,assignment]
    tokens = [(7 * index + 3) % vocabulary for index in range(WIDTH)]
    other_prompt, other_answer = list(tokens), list(tokens)
    other_prompt[PROMPT - 1] = (tokens[PROMPT - 1] + 1) % vocabulary
    other_answer[-1] = (tokens[-1] + 1) % vocabulary
    rows = [tokens, other_prompt, other_answer]
    # One pass for all rows: on a CPU a pass takes the time of reading every weight, however few rows it has.
    causal, prefix = _hidden(lm, rows, [[CAUSAL] * WIDTH, [0] * PROMPT + [CAUSAL] * (WIDTH - PROMPT)]).chunk(2)
    kind = type(lm.model).__name__
    if not bool(torch.isfinite(causal).all() and torch.isfinite(prefix).all()):
        raise UserError(f"model: {kind} gives NaN or infinity for a plain prompt, expected finite numbers.")
    # Equal to rounding, not to the bit: experts work in groups whose sizes depend on every token of the batch.
    sees_ahead = [not close(causal[0, : PROMPT - 1], causal[1, : PROMPT - 1])]
    sees_ahead += [not close(states[0, :-1], states[2, :-1]) for states in (causal, prefix)]
    if any(sees_ahead):
        raise UserError(
            f"model: {kind} attends to later tokens that its mask hides, so its scores would be wrong; "
            "expected a model that attends to what its mask shows."
        )
    if close(prefix[0, : PROMPT - 1], prefix[1, : PROMPT - 1]):
        raise UserError(
            f"model: {kind} stays causal where its mask shows the whole prompt, "
            "expected a model that attends to what its mask shows."
        )
    ids = torch.tensor([tokens], device=lm.device)
    if not close(lm.head(causal[:1]), lm.model(input_ids=ids, use_cache=False).logits):
        raise UserError(
            f"model: {kind} computes its logits from the hidden states in a way that is not known here, "
            "expected a linear head, scaled or soft-capped as its configuration says."
        )


def _hidden(lm: Reader, rows: list[list[int]], masks: list[list[int]]) -> Tensor:
    """Final hidden states `(masks * rows, WIDTH, D)`: all rows under the first mask, then under the next."""
    blocks = [mask for mask in masks for _ in rows]
    prefix = Prefix.of_tokens(rows * len(masks), blocks, device=lm.device)
    ids = pad_rows(rows * len(masks), 0).to(lm.device)
    return lm.run(ids, prefix.columns, Reading(prefix.columns))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors of one shape are equal up to rounding in the dtype of `theirs`, on any devices."""
    theirs = theirs.to(ours.device)
    scale = float(theirs.float().abs().max())
    tolerance = 1e-4 if theirs.dtype == torch.float32 else 3e-2
    return float((ours.float() - theirs.float()).abs().max()) <= tolerance * max(scale, 1e-6)
