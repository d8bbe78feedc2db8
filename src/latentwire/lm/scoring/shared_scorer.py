"""Scores the continuations of many prompts with every shared token read once.

`scoring.continuations` prefills a prompt and then reads its continuations: two passes. Here a prompt and all its
continuations are packed into one row and read in one pass, together with prompts that share a prefix with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from latentwire.errors import UserError
from latentwire.lm.decoder import Decoder
from latentwire.lm.halving import Halving
from latentwire.lm.masks.reading import Columns, LayerRange, Memory
from latentwire.lm.scoring.continuations import Score
from latentwire.lm.scoring.prefix_tree import Request, tree
from latentwire.lm.scoring.row_plan import plan
from latentwire.lm.scoring.scoring_shares import Reads, share
from latentwire.lm.scoring.tree_rows import TreeReading, TreeRow, stacked
from latentwire.process_group import ALONE, Group

BATCH_TOKENS = 8192
"""Columns of one forward pass, padding included."""
CPU_TOKENS = 2048
"""The maximum on a CPU, where activations should stay in the caches (12 % faster than 8192)."""
LOGITS = 2**26
"""Float32 logits held at once: a quarter of a gibibyte."""


@dataclass
class Work:
    """What scoring cost.

    Attributes:
        run: columns that went through the model, padding included.
        least: the fewest tokens that must (`prefix_tree.minimum`).
        passes: forward passes.
    """

    run: int = 0
    least: int = 0
    passes: int = 0


@dataclass(eq=False)
class _Read:
    """A trunk after its forward pass: keys and values `(1, H, M, D)`, final hidden states `(M, D)`."""

    memory: Memory
    hidden: Tensor


@dataclass
class SharedScorer:
    """Scores requests with one model under one mask.

    Attributes:
        layers: the layers in which bidirectional blocks apply; None for all.
        batch_tokens: maximum columns of a forward pass.
        work: the cost so far.
        halving: reads batches of rows smaller once memory has run out, down to one row.
    """

    lm: Decoder
    layers: LayerRange | None = None
    batch_tokens: int = BATCH_TOKENS
    work: Work = field(default_factory=Work)
    halving: Halving = field(default_factory=Halving)

    @torch.no_grad()
    def score(self, requests: Sequence[Request], group: Group = ALONE) -> Iterator[tuple[int, list[Score]]]:
        """Yields (request index, scores of its continuations) as requests finish, which may be out of order.

        Args:
            requests: what is scored; all processes of `group` are given the same.
            group: who shares the reading; every process gets all scores.

        Raises:
            UserError: a request is longer than the model's positions.
            torch.OutOfMemoryError: a single row does not fit into memory.
        """
        if not requests:
            return
        self._check_length(requests)
        root = tree(requests)
        self.work.least += root.size
        most = min(self.batch_tokens, CPU_TOKENS) if self.lm.device.type == "cpu" else self.batch_tokens
        mine = share(Reads.of(plan(root), most), group.index, group.size)
        pieces: Iterable[tuple[int, int, Score]] = iter(()) if mine is None else self._trunk(mine, None)
        if group.size > 1:
            pieces = chain.from_iterable(group.gathered(list(pieces)))
            costs = group.gathered((self.work.run, self.work.passes))
            self.work.run, self.work.passes = (sum(each) for each in zip(*costs, strict=True))
        scores: list[list[Score | None]] = [[None] * len(request.continuations) for request in requests]
        for request, continuation, score in pieces:
            scores[request][continuation] = score
            if all(scores[request]):
                yield request, [done for done in scores[request] if done is not None]

    def _check_length(self, requests: Sequence[Request]) -> None:
        longest = max(len(r.ids) + max(map(len, r.continuations)) - 1 for r in requests)
        if longest > self.lm.max_positions:
            raise UserError(
                f"prompt: found {longest:,} tokens, expected at most {self.lm.max_positions:,}, "
                f"which is what {self.lm.name} was built for."
            )

    def _trunk(self, reads: Reads, before: _Read | None) -> Iterator[tuple[int, int, Score]]:
        """Yields (request, continuation, score) for all rows of a trunk, which extends the trunk `before`."""
        if reads.trunk.nodes:
            alone = TreeRow.of_path(reads.trunk.nodes)
            cache = DynamicCache()
            hidden = self._read([alone], before, cache)
            if reads.scores:
                yield from self._scores([alone], hidden, before)
            before = self._grown(alone, hidden[0], cache, before)
        for batch in reads.batches:
            yield from self._scores_of(batch, before)
        for longer in reads.longer:
            yield from self._trunk(longer, before)

    def _scores_of(self, rows: Sequence[TreeRow], before: _Read | None) -> Iterator[tuple[int, int, Score]]:
        """Yields what `_scores` does, for rows that are read together or, where memory runs out, in parts."""

        def read(part: Sequence[TreeRow]) -> list[tuple[int, int, Score]]:
            return list(self._scores(part, self._read(part, before), before))

        def columns(part: Sequence[TreeRow]) -> int:
            return max(row.width for row in part) * len(part)

        for _, scores in self.halving.read(rows, read, columns, lambda row: f"a row of {row.width:,} tokens"):
            yield from scores

    def _read(self, rows: Sequence[TreeRow], before: _Read | None, cache: DynamicCache | None = None) -> Tensor:
        """Final hidden states `(B, T, D)` of rows that continue a trunk."""
        ids, columns, ends = stacked(rows, self.lm.device)
        memory = None if before is None else _expanded(before.memory, len(rows))
        hidden = self.lm.run(ids, columns, TreeReading(columns, self.layers, memory, ends=ends), cache)
        self.work.run += ids.numel()
        self.work.passes += 1
        return hidden

    def _grown(self, row: TreeRow, hidden: Tensor, cache: DynamicCache, before: _Read | None) -> _Read:
        """The trunk extended by a row whose keys and values are in `cache`."""
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
        self, rows: Sequence[TreeRow], hidden: Tensor, before: _Read | None
    ) -> Iterator[tuple[int, int, Score]]:
        """Yields (request, continuation, score) of the sequences that end in these rows."""
        # One row of the head per predicting column, however many continuations begin there.
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
        """For each token, its log-probability given the state at its place, and whether it is the likeliest."""
        if not places:
            return [], []
        where, index = torch.tensor(places).unique(return_inverse=True)
        order = index.argsort(stable=True)
        targets = torch.tensor(tokens)[order].to(states.device)
        predicting, of_state = states[where.to(states.device)], index[order]
        step = max(1, LOGITS // self._vocabulary)
        logprobs, greedy = [], []
        for start in range(0, len(where), step):
            logits = self.lm.head(predicting[start : start + step]).float()
            first, last = torch.searchsorted(of_state, torch.tensor([start, start + step])).tolist()
            mine = (of_state[first:last] - start).to(states.device)
            chosen = logits[mine, targets[first:last]]
            logprobs.append(chosen - logits.logsumexp(-1)[mine])
            greedy.append(logits.argmax(-1)[mine] == targets[first:last])
        back = order.argsort().tolist()
        flat, likeliest = torch.cat(logprobs).tolist(), torch.cat(greedy).tolist()
        return [flat[n] for n in back], [likeliest[n] for n in back]

    @property
    def _vocabulary(self) -> int:
        return int(self.lm.model.get_input_embeddings().weight.shape[0])  # type: ignore[index,union-attr,arg-type]


def _expanded(memory: Memory, rows: int) -> Memory:
    """The same memory for every row, as a view."""
    return Memory(
        tuple(key.expand(rows, -1, -1, -1) for key in memory.keys),
        tuple(value.expand(rows, -1, -1, -1) for value in memory.values),
        memory.columns.select(torch.zeros(rows, dtype=torch.long, device=memory.columns.positions.device)),
    )
