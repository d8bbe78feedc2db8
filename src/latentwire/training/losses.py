"""Cross-entropy and distillation from hidden states, without a tensor of the size tokens × vocabulary.

Logits are computed for a chunk of tokens at a time, turned into their own gradient in place, and multiplied into
the gradients of hidden states and head; only those two are kept. Loss and gradient come from one pass, so the head
is multiplied three times, as often as in the plain loss. The idea is Liger's (Hsu et al., 2410.10989) in plain
torch. `torch.nn.functional.linear_cross_entropy` does the same from torch 2.13 on, for cross-entropy alone;
Liger's kernels would be one more package, and its fused divergences were found inaccurate in bfloat16. So neither
is used.

Accuracy: the softmax is in float32, every product in the head's dtype. In bfloat16 the gradient of the hidden
states equals the plain loss's; the head's is rounded once a chunk instead of once, so that with 8 chunks it is off
by 0.34 % of its norm, where the plain loss is off by 0.17 %; with 16 chunks by 0.43 %.

Shapes: N tokens, D the width of hidden states, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentwire.lm.model import LM
from latentwire.lm.prefix import Forced

CHUNK_BYTES = 2**29
"""Of a chunk's logits: 2,048 tokens in bfloat16 at a vocabulary of 131,072, enough for products at full speed."""
PART_BYTES = 2**27
"""Of float32 logits at a time, a piece of a chunk."""

Divergence = Callable[[Tensor, slice], Tensor]
"""Called with logits `(R, V)` of a slice of the tokens; returns their summed loss and leaves its gradient in
the logits."""


@dataclass(frozen=True)
class Head:
    """What turns hidden states into logits.

    Attributes:
        weight: `(V, D)`.
        cap: Of the logits, as in Gemma.
        scale: What the logits are multiplied by before the cap, as in Cohere and Granite.
    """

    weight: Tensor
    cap: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, lm: LM) -> Head | None:
        """A model's head; None if it is more than a matrix (adapters, hooks, shards, biases): use `LM.head`."""
        module = lm.model.get_output_embeddings()
        if type(module) is not nn.Linear or module.bias is not None or type(module.weight) is not nn.Parameter:
            return None
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return None
        return cls(module.weight, getattr(lm.config, "final_logit_softcapping", None), lm.logit_scale)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.scaled(hidden) @ self.weight.to(hidden.dtype).T
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def scaled(self, hidden: Tensor) -> Tensor:
        """Hidden states whose plain logits are the model's scaled ones."""
        return hidden if self.scale == 1 else hidden * self.scale


def cross_entropy(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Summed cross-entropy of labels `(N,)` under the logits of hidden states `(N, D)`."""

    def divergence(logits: Tensor, tokens: slice) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        for part in _parts(logits):
            wanted = labels[tokens][part, None]
            scores = logits[part].log_softmax(-1, dtype=torch.float32)
            total -= scores.gather(1, wanted).sum()
            logits[part] = scores.exp_().scatter_add_(1, wanted, scores.new_full(wanted.shape, -1.0))
        return total

    return _chunked(hidden, head, divergence)


def summed_nats(lm: LM, forced: Forced, chosen: Tensor | None = None) -> Tensor:
    """Summed cross-entropy of the N labels, or of the chosen ones, `(N,)` bool."""
    hidden, labels = forced.hidden, forced.labels
    if chosen is not None:
        hidden, labels = hidden[chosen], labels[chosen]
    head = Head.of(lm)
    if head is not None:
        return cross_entropy(hidden, head, labels)
    return F.cross_entropy(lm.head(hidden).float(), labels, reduction="sum")


def token_nats(lm: LM, forced: Forced) -> Tensor:
    """Cross-entropy of each label, `(N,)`."""
    return F.cross_entropy(lm.head(forced.hidden).float(), forced.labels, reduction="none")


def kl(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor,
    teacher: Head,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
) -> Tensor:
    """Summed KL(teacher ‖ student), or KL(student ‖ teacher) if `reverse`, times the temperature squared.

    The square keeps gradients of the same size at every temperature (Hinton et al., 1503.02531). Nothing flows
    into the teacher.

    Args:
        teacher_hidden: `(N, D')` of the same tokens, and `teacher` its head over the same vocabulary.
    """
    width = teacher.weight.shape[0]
    if width != head.weight.shape[0]:
        raise ValueError(f"the teacher has {width} tokens, the student {head.weight.shape[0]}")

    def divergence(logits: Tensor, tokens: slice) -> Tensor:
        aims = teacher.logits(teacher_hidden[tokens])
        total = logits.new_zeros((), dtype=torch.float32)
        for part in _parts(logits):
            ours, theirs = (_softened(each[part], temperature) for each in (logits, aims))
            if reverse:
                gap = ours - theirs
                each = (ours.exp_() * gap).sum(-1, keepdim=True)
                logits[part] = ours.mul_(gap.sub_(each)).mul_(temperature)
                total += each.sum()
            else:
                share = theirs.exp()
                total += share.mul(theirs.sub_(ours)).sum()
                logits[part] = ours.exp_().sub_(share).mul_(temperature)
        return total * temperature**2

    return _chunked(hidden, head, divergence)


def top_kl(hidden: Tensor, head: Head, ids: Tensor, logprobs: Tensor) -> Tensor:
    """Summed KL(teacher ‖ student) against a teacher's stored top tokens.

    All other tokens count as one. Without that rest a student learns to put nothing on it: dropping or
    renormalizing it is biased (Anshumann et al., 2503.16870).

    Args:
        ids: `(N, K)` the teacher's likeliest tokens. logprobs: `(N, K)` their log-probabilities over the whole
            vocabulary.
    """

    def divergence(logits: Tensor, tokens: slice) -> Tensor:
        total = logits.new_zeros((), dtype=torch.float32)
        for part in _parts(logits):
            at, theirs = ids[tokens][part], logprobs[tokens][part].float()
            scores = logits[part].log_softmax(-1, dtype=torch.float32)
            ours = scores.gather(1, at)
            share = theirs.exp()
            rest = (1 - share.sum(-1, keepdim=True)).clamp_min(0)
            odds = scores.exp_()
            inside = odds.gather(1, at)
            # Summed rather than subtracted from one: what is left may be smaller than a rounding of one.
            left = odds.scatter_(1, at, 0).sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            total += (share * (theirs - ours)).sum() + (rest.xlogy(rest) - rest * left.log()).sum()
            logits[part] = odds.mul_(1 - rest / left).scatter_(1, at, inside - share)
        return total

    return _chunked(hidden, head, divergence)


def _softened(logits: Tensor, temperature: float) -> Tensor:
    """Float32 log-probabilities, a new tensor."""
    if temperature != 1:
        logits = logits.float() / temperature
    return logits.log_softmax(-1, dtype=torch.float32)


def _parts(logits: Tensor) -> Iterator[slice]:
    size = max(1, PART_BYTES // (4 * logits.shape[1]))
    return (slice(at, at + size) for at in range(0, len(logits), size))


def _chunked(hidden: Tensor, head: Head, divergence: Divergence) -> Tensor:
    learns, hidden = torch.is_grad_enabled(), head.scaled(hidden)
    wanted = (learns and hidden.requires_grad, learns and head.weight.requires_grad)
    loss: Tensor = _Chunked.apply(hidden, head.weight, head.cap, divergence, wanted)
    return loss


class _Chunked(torch.autograd.Function):
    """Loss and gradients in the forward pass; the backward pass scales what is there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        cap: float | None,
        divergence: Divergence,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        matrix, states = weight.to(dtype), hidden.to(dtype)
        for_hidden = torch.empty_like(hidden) if wanted[0] else None
        for_weight = torch.zeros_like(matrix) if wanted[1] else None
        loss = hidden.new_zeros((), dtype=torch.float32)
        size = max(1, CHUNK_BYTES // (matrix.element_size() * len(matrix)))
        with torch.autocast(device, enabled=False):
            for at in range(0, len(hidden), size):
                tokens = slice(at, at + size)
                logits = states[tokens] @ matrix.T
                steep = None
                if cap is not None:
                    logits = logits.div_(cap).tanh_()
                    steep = 1 - logits.square()
                    logits = logits.mul_(cap)
                loss += divergence(logits, tokens)
                if steep is not None:
                    logits *= steep
                if for_hidden is not None:
                    for_hidden[tokens] = logits @ matrix
                if for_weight is not None:
                    for_weight.addmm_(logits.T, states[tokens])
        ctx.save_for_backward(for_hidden, None if for_weight is None else for_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # Not in place: the norms of single objectives need the same gradients before the step does.
        scaled = [None if each is None else each * scale.to(each.dtype) for each in ctx.saved_tensors]
        return (*scaled, None, None, None)
