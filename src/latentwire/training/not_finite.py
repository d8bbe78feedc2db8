"""Values that are not finite numbers end a training; which batch and which objective they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from latentwire.training.training_step import Losses

NAMED = 8
"""Examples that a message names; a batch may have hundreds."""


class NotFinite(RuntimeError):
    """Training met NaN or infinity."""


def culprits(
    parts: Sequence[object], forward: Callable[[object], Losses], parameters: Iterable[nn.Parameter]
) -> tuple[list[int], list[str]]:
    """Look again at a step that failed: one forward pass a part and one backward pass an objective.

    Returns:
        Indices of the parts with a loss or gradient that is not finite, and the objectives it comes from.
    """
    weights = list(parameters)
    bad_parts: list[int] = []
    bad_terms: list[str] = []
    for index, part in enumerate(parts):
        losses = forward(part)
        bad = [name for name, term in losses.terms.items() if not _finite_with_gradient(term, weights)]
        if bad:
            bad_parts.append(index)
            bad_terms += [name for name in bad if name not in bad_terms]
    return bad_parts, bad_terms


def _finite_with_gradient(term: Tensor, weights: Sequence[nn.Parameter]) -> bool:
    if not bool(torch.isfinite(term)):
        return False
    if not term.requires_grad:
        return True
    gradients = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)


def sentence(step: int, values: Mapping[str, float], terms: Sequence[str], examples: Sequence[str]) -> str:
    """What was found and where, for the log and the run's record."""
    wrong = ", ".join(f"{name} {value}" for name, value in values.items() if not abs(value) < float("inf"))
    named = ", ".join(dict.fromkeys(examples[:NAMED]))
    more = f" and {len(examples) - NAMED} more" if len(examples) > NAMED else ""
    of = f" of {', '.join(terms)}" if terms else ""
    return f"step {step}{of}: found {wrong}, expected finite numbers; the batch holds {named}{more}"
