"""What every model is asked on loading: do you read as the mask says?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from latentwire.errors import UserError
from latentwire.lm.masks.reading import Reading
from latentwire.lm.prefix import Prefix, pad_rows
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.reader import Reader

PROMPT, WIDTH = 4, 6


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode it had.

    A layer in training mode drops activations, and under activation checkpointing keeps no cache.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def check(lm: Reader) -> None:
    """Read six tokens under both masks, with one of them exchanged, and compare.

    Raises:
        UserError: the model sees what the mask hides, or does not see what it shows, or its head
            is not known here.
    """
    vocabulary: int = lm.model.get_input_embeddings().weight.shape[0]  # type: ignore[index,assignment]
    tokens = [(7 * at + 3) % vocabulary for at in range(WIDTH)]
    other_prompt, other_answer = list(tokens), list(tokens)
    other_prompt[PROMPT - 1] = (tokens[PROMPT - 1] + 1) % vocabulary
    other_answer[-1] = (tokens[-1] + 1) % vocabulary
    rows = [tokens, other_prompt, other_answer]
    # In one pass: on a CPU each takes the time of reading every weight, whatever it is given.
    causal, prefix = _hidden(lm, rows, [[CAUSAL] * WIDTH, [0] * PROMPT + [CAUSAL] * (WIDTH - PROMPT)]).chunk(2)
    kind = type(lm.model).__name__
    if not bool(torch.isfinite(causal).all() and torch.isfinite(prefix).all()):
        raise UserError(f"model: {kind} answers a plain prompt with values that are not finite numbers.")
    # To rounding, not to the bit: experts compute in groups whose sizes depend on every token of the batch.
    sees_ahead = [not close(causal[0, : PROMPT - 1], causal[1, : PROMPT - 1])]
    sees_ahead += [not close(states[0, :-1], states[2, :-1]) for states in (causal, prefix)]
    if any(sees_ahead):
        raise UserError(f"model: {kind} sees tokens ahead that its mask hides, so no number of it is true.")
    if close(prefix[0, : PROMPT - 1], prefix[1, : PROMPT - 1]):
        raise UserError(f"model: {kind} stays causal where its mask shows the whole prompt.")
    ids = torch.tensor([tokens], device=lm.device)
    if not close(lm.head(causal[:1]), lm.model(input_ids=ids, use_cache=False).logits):
        raise UserError(f"model: {kind} turns hidden states into logits in a way not known here.")


def _hidden(lm: Reader, rows: list[list[int]], masks: list[list[int]]) -> Tensor:
    """Final states of all rows under the first mask, then under the next; a mask is the blocks of a row."""
    blocks = [mask for mask in masks for _ in rows]
    prefix = Prefix.of_tokens(rows * len(masks), blocks, device=lm.device)
    ids = pad_rows(rows * len(masks), 0).to(lm.device)
    return lm.run(ids, prefix.columns, Reading(prefix.columns))


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors of one shape, on whatever devices, are equal to rounding in `theirs`' dtype."""
    theirs = theirs.to(ours.device)
    scale = float(theirs.float().abs().max())
    tolerance = 1e-4 if theirs.dtype == torch.float32 else 3e-2
    return float((ours.float() - theirs.float()).abs().max()) <= tolerance * max(scale, 1e-6)
