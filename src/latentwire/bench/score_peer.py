"""The peer of the scoring benchmark: lm-eval's `hf` model, or a copy of its method where lm-eval is missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of a continuation."""


class Peer:
    """Scores pairs as `lm_eval --model hf` does, its defaults untouched.

    note: empty with lm-eval itself. run: tokens through the model so far, padding included.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch: int) -> None:
        self.run, self.note = 0, ""
        self._model, self._batch = model, batch
        self._hf: Any = None
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError:
            self.note = "lm-eval is not installed: a copy of what its hf model does"
            return
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._hf = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device=str(model.device))

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Log-probability of each continuation after its context."""
        hook = self._model.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            if self._hf is None:
                return self._stand_in(pairs)
            # The name is what its cache of answers would go by; it is off.
            named = [((str(n), ""), context, continuation) for n, (context, continuation) in enumerate(pairs)]
            return [logprob for logprob, _ in self._hf._loglikelihood_tokens(named, disable_tqdm=True)]
        finally:
            hook.remove()

    def _count(self, module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.run += (args[0] if args else kwargs["input_ids"]).numel()

    @torch.no_grad()
    def _stand_in(self, pairs: Sequence[Pair]) -> list[float]:
        """Longest first, equal inputs once, padded on the right, the softmax of all logits of a batch."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for n, (context, continuation) in enumerate(pairs):
            groups.setdefault((*context, *continuation[:-1]), []).append(n)
        order = sorted(groups, key=lambda ids: (-len(ids), ids))
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), self._batch):
            chunk = order[start : start + self._batch]
            width = len(chunk[0])
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in chunk], device=self._model.device)
            logprobs: Tensor = self._model(ids).logits.log_softmax(-1)
            for row, each in zip(chunk, logprobs, strict=True):
                for n in groups[row]:
                    asked = torch.tensor(pairs[n][1], device=each.device)
                    behind = each[len(row) - len(asked) : len(row)]
                    # As there: whether greedy decoding would say the same is asked each time.
                    bool((behind.argmax(-1) == asked).all())
                    scores[n] = float(behind.gather(1, asked[:, None]).sum())
        return scores
