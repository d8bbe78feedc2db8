"""Log-probabilities of the continuations of many prompts, every shared token read once.

`scoring` reads a prompt, keeps its keys and values and reads the continuations behind them: two passes. Here a
prompt and all its continuations stand in one row and are read in one pass, and so do prompts that begin alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentwire.errors import UserError
from latentwire.lm.decoder import Decoder
from latentwire.lm.masks.reading import Columns, LayerRange, Memory
from latentwire.lm.scoring.continuations import Score
from latentwire.lm.scoring.forest import Trunk, plan
from latentwire.lm.scoring.prefix_tree import Request, tree
from latentwire.lm.scoring.tree_rows import Layout, TreeReading, in_batches, stacked

BATCH_TOKENS = 8192
"""Columns of one forward pass, padding included."""
CPU_TOKENS = 2048
"""The most on a CPU, where what one layer hands to the next should stay in its caches (12 % faster than 8192)."""
LOGITS = 2**26
"""Logits, in float32, that are held at once: a quarter of a gibibyte."""


@dataclass
class Work:
    """What scoring cost. run: columns that went through the model, padding included. least: the fewest tokens
    that have to (`sharing.minimum`). passes: forward passes."""

    run: int = 0
    least: int = 0
    passes: int = 0


@dataclass(eq=False)
class _Read:
    """A trunk that has been read: keys and values `(1, H, M, D)`, final states `(M, D)`."""

    memory: Memory
    hidden: Tensor


@dataclass
class Together:
    """Scores requests under one mask.

    layers: where blocks count. batch_tokens: columns of a pass. work: the cost so far.
    """

    lm: Decoder
    layers: LayerRange | None = None
    batch_tokens: int = BATCH_TOKENS
    work: Work = field(default_factory=Work)

    @torch.no_grad()
    def score(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[Score]]]:
        """Pairs of a request's index and the scores of its continuations, in the order in which they are done.

        Raises:
            UserError: a request is longer than the model's positions.
        """
        if not requests:
            return
        self._check_length(requests)
        root = tree(requests)
        self.work.least += root.size
        found: list[list[Score | None]] = [[None] * len(request.continuations) for request in requests]
        for request, continuation, score in self._trunk(plan(root), None):
            found[request][continuation] = score
            if all(found[request]):
                yield request, [each for each in found[request] if each is not None]

    def _check_length(self, requests: Sequence[Request]) -> None:
        longest = max(len(r.ids) + max(map(len, r.continuations)) - 1 for r in requests)
        if longest > self.lm.max_positions:
            raise UserError(
                f"prompt: found {longest:,} tokens, expected at most {self.lm.max_positions:,}, "
                f"which is what {self.lm.name} was built for."
            )

    def _trunk(self, trunk: Trunk, before: _Read | None) -> Iterator[tuple[int, int, Score]]:
        if trunk.nodes:
            alone = Layout.of_path(trunk.nodes)
            cache = DynamicCache()
            hidden = self._read([alone], before, cache)
            yield from self._scores([alone], hidden, before)
            before = self._grown(alone, hidden[0], cache, before)
        start = 0 if before is None else before.memory.columns.width
        rows = sorted((Layout.of_branches(row, start) for row in trunk.rows), key=lambda row: -row.width)
        most = min(self.batch_tokens, CPU_TOKENS) if self.lm.device.type == "cpu" else self.batch_tokens
        for batch in in_batches(rows, most):
            yield from self._scores(batch, self._read(batch, before), before)
        for longer in trunk.trunks:
            yield from self._trunk(longer, before)

    def _read(self, rows: Sequence[Layout], before: _Read | None, cache: DynamicCache | None = None) -> Tensor:
        """Final states `(B, T, D)` of rows behind a trunk."""
        ids, columns, ends = stacked(rows, self.lm.device)
        self.work.run += ids.numel()
        self.work.passes += 1
        memory = None if before is None else _expanded(before.memory, len(rows))
        return self.lm.run(ids, columns, TreeReading(columns, self.layers, memory, ends=ends), cache)

    def _grown(self, row: Layout, hidden: Tensor, cache: DynamicCache, before: _Read | None) -> _Read:
        """The trunk that ends with a row that has just been read into `cache`."""
        positions = torch.tensor([row.positions], device=hidden.device)
        columns = Columns.of(torch.ones_like(positions).bool(), positions)
        layers: list[Any] = cache.layers
        keys, values = tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)
        if before is None:
            return _Read(Memory(keys, values, columns), hidden)
        old = before.memory
        both = Memory(
            tuple(torch.cat(pair, 2) for pair in zip(old.keys, keys, strict=True)),
            tuple(torch.cat(pair, 2) for pair in zip(old.values, values, strict=True)),
            old.columns.append(columns),
        )
        return _Read(both, torch.cat([before.hidden, hidden]))

    def _scores(
        self, rows: Sequence[Layout], hidden: Tensor, before: _Read | None
    ) -> Iterator[tuple[int, int, Score]]:
        """Scores of the sequences that end in these rows."""
        # One head row a predicting column, however many continuations begin there.
        width, states = hidden.shape[1], hidden.flatten(0, 1)
        ends = [(line, n, at) for n, row in enumerate(rows) for line, at in row.at]
        trunk = 0 if before is None else len(before.hidden)
        if trunk and before is not None and any(column < 0 for _, _, at in ends for column in at):
            states = torch.cat([states, before.hidden])
        places = [
            n * width + column if column >= 0 else len(rows) * width + trunk + column
            for _, n, at in ends
            for column in at
        ]
        tokens = [token for line, _, _ in ends for token in line.answer]
        logprobs, greedy = self._per_token(states, places, tokens)
        at = 0
        for line, _, columns in ends:
            mine = slice(at, at + len(columns))
            at = mine.stop
            yield line.request, line.continuation, Score(sum(logprobs[mine]), all(greedy[mine]), len(columns))

    def _per_token(
        self, states: Tensor, places: Sequence[int], tokens: Sequence[int]
    ) -> tuple[list[float], list[bool]]:
        """Per asked token its log-probability behind the state at its place, and whether it is the likeliest."""
        if not places:
            return [], []
        where, index = torch.tensor(places).unique(return_inverse=True)
        order = index.argsort(stable=True)
        asked = torch.tensor(tokens)[order].to(states.device)
        predicting, behind = states[where.to(states.device)], index[order]
        step = max(1, LOGITS // self._vocabulary)
        logprobs, greedy = [], []
        for start in range(0, len(where), step):
            logits = self.lm.head(predicting[start : start + step]).float()
            first, last = torch.searchsorted(behind, torch.tensor([start, start + step])).tolist()
            mine = (behind[first:last] - start).to(states.device)
            chosen = logits[mine, asked[first:last]]
            logprobs.append(chosen - logits.logsumexp(-1)[mine])
            greedy.append(logits.argmax(-1)[mine] == asked[first:last])
        back = order.argsort().tolist()
        flat, likeliest = torch.cat(logprobs).tolist(), torch.cat(greedy).tolist()
        return [flat[n] for n in back], [likeliest[n] for n in back]

    @property
    def _vocabulary(self) -> int:
        return int(self.lm.model.get_input_embeddings().weight.shape[0])  # type: ignore[index,union-attr,arg-type]


def _expanded(memory: Memory, rows: int) -> Memory:
    """One memory before every row; nothing is copied."""
    return Memory(
        tuple(key.expand(rows, -1, -1, -1) for key in memory.keys),
        tuple(value.expand(rows, -1, -1, -1) for value in memory.values),
        memory.columns.select(torch.zeros(rows, dtype=torch.long, device=memory.columns.positions.device)),
    )
