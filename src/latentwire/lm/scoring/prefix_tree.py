"""The prefix tree of scoring requests: which tokens several of them share and can be read once.

A request is a prompt with continuations; a prompt followed by one continuation is a sequence. Sequences share
a prefix as far as the mask allows: a token's state depends on the tokens before it and on its own block, so a
shared prefix may only end where no block continues (a legal cut). Under a causal mask every cut is legal and the
tree is a radix tree of tokens (as in SGLang's RadixAttention, Zheng et al., 2312.07104); under `prefix` only whole
prompts are shared; under `segments` a passage is shared among its questions.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from latentwire.lm.masks.reading import SHARED
from latentwire.lm.prefix import Prefix
from latentwire.lm.prompts import CAUSAL

_BYTES = 8  # a column as one 64-bit integer


@dataclass(frozen=True)
class Request:
    """A prompt at positions 0, 1, ... and the continuations to score after it.

    Attributes:
        ids: token ids of the prompt, at least one.
        blocks: one block id per prompt token.
        continuations: token ids, none empty.
    """

    ids: Sequence[int]
    blocks: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @classmethod
    def of(cls, prefix: Prefix, continuations: Sequence[Sequence[Sequence[int]]]) -> list[Request] | None:
        """One request per row of a prefix, or None where its rows are not plain tokens.

        Not plain are embeddings, memories, answers that join the prompt's block (`leaky`), and columns other than
        the positions 0, 1, ... of one document.
        """
        if prefix.ids is None or prefix.memory is not None or prefix.leaky:
            return None
        columns = prefix.columns
        ahead = columns.positions[:, :1] * 0 + columns.positions.new_tensor(range(columns.width))
        # Padding is on the right only if no valid column follows an invalid one.
        holes = columns.valid[:, 1:] & ~columns.valid[:, :-1]
        strange = columns.valid & ((columns.positions != ahead) | (columns.documents != SHARED))
        if bool(holes.any()) or bool(strange.any()) or not bool(columns.valid[:, 0].all()):
            return None
        rows = zip(
            prefix.ids.tolist(), columns.blocks.tolist(), columns.valid.sum(1).tolist(), continuations, strict=True
        )
        return [cls(ids[:length], blocks[:length], after) for ids, blocks, length, after in rows]

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Indices of the first and the last token of every block."""
        backwards = list(reversed(self.blocks))
        ids = set(self.blocks) - {CAUSAL}
        return tuple((self.blocks.index(b), len(self.blocks) - 1 - backwards.index(b)) for b in ids)

    @cached_property
    def code(self) -> bytes:
        """Token and block ids packed into bytes, so that long prefixes are compared fast."""
        pairs = zip(self.ids, self.blocks, strict=True)
        return array("q", [token << 32 | block + 1 for token, block in pairs]).tobytes()

    def units(self) -> Iterator[tuple[int, int]]:
        """Yields `(start, stop)` of the prompt's parts between neighbouring legal cuts."""
        start = 0
        for stop in range(1, len(self.ids) + 1):
            if not any(first < stop <= last for first, last in self.spans):
                yield start, stop
                start = stop


@dataclass(frozen=True)
class Scored:
    """A prompt with one continuation, whose last token predicts nothing and is not read.

    Attributes:
        request, continuation: indices of the request and of the continuation in it.
        code: `Request.code` of all tokens that are read.
    """

    request: int
    continuation: int
    prompt: Request
    answer: Sequence[int]
    code: bytes

    def __len__(self) -> int:
        return len(self.prompt.ids) + len(self.answer) - 1

    def token(self, at: int) -> int:
        width = len(self.prompt.ids)
        return self.prompt.ids[at] if at < width else self.answer[at - width]

    def block(self, at: int) -> int:
        return self.prompt.blocks[at] if at < len(self.prompt.ids) else CAUSAL

    def shared(self, other: Scored) -> int:
        """Length of the common prefix, up to the last cut that is legal in both."""
        cut = _common(self.code, other.code)
        spans = {*self.prompt.spans, *other.prompt.spans}
        while inside := [first for first, last in spans if first < cut <= last]:
            cut = min(inside)
        return cut


def _common(left: bytes, right: bytes) -> int:
    low, high = 0, min(len(left), len(right)) // _BYTES
    if left[: high * _BYTES] == right[: high * _BYTES]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if left[low * _BYTES : middle * _BYTES] == right[low * _BYTES : middle * _BYTES]:
            low = middle
        else:
            high = middle
    return low


@dataclass(eq=False)
class Node:
    """Tokens `start..stop-1` of sequence `of`, shared by every sequence below this node.

    Attributes:
        ends: the sequences whose last read token is this node's last.
        size: tokens of this node and of its whole subtree.
    """

    start: int
    stop: int
    of: Scored
    children: list[Node] = field(default_factory=list)
    ends: list[Scored] = field(default_factory=list)
    size: int = 0

    @property
    def width(self) -> int:
        return self.stop - self.start

    def preorder(self) -> Iterator[Node]:
        """Yields this node and its subtree, parents before children, children in order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)


def sequences(requests: Sequence[Request]) -> list[Scored]:
    """Every prompt with each of its continuations."""
    made = []
    for n, request in enumerate(requests):
        for k, answer in enumerate(request.continuations):
            after = array("q", [token << 32 for token in answer[:-1]]).tobytes()
            made.append(Scored(n, k, request, answer, request.code + after))
    return made


def tree(requests: Sequence[Request]) -> Node:
    """The radix tree of all sequences. Its root holds no token; its `size` is the number of tokens to read."""
    ordered = sorted(sequences(requests), key=lambda sequence: sequence.code)
    root = Node(0, 0, ordered[0])
    path, before = [root], None
    for sequence in ordered:
        shared = 0 if before is None else before.shared(sequence)
        while len(path) > 1 and path[-1].start >= shared:
            path.pop()
        top = path[-1]
        if top.stop > shared:
            top.children = [Node(shared, top.stop, top.of, top.children, top.ends)]
            top.stop, top.ends = shared, []
        if len(sequence) > shared:
            path.append(Node(shared, len(sequence), sequence, ends=[sequence]))
            top.children.append(path[-1])
        else:
            top.ends.append(sequence)
        before = sequence
    for node in reversed(list(root.preorder())):
        node.size = node.width + sum(child.size for child in node.children)
    return root


def minimum(requests: Sequence[Request]) -> int:
    """The fewest tokens that must run through a model to score the requests.

    Counted independently of `tree`, part by part: equal parts after equal prefixes count once.
    """
    known: dict[tuple[int, tuple[tuple[int, int], ...]], int] = {}
    tokens = 0

    def follow(state: int, unit: tuple[tuple[int, int], ...]) -> int:
        nonlocal tokens
        if (state, unit) not in known:
            known[state, unit] = len(known) + 1
            tokens += len(unit)
        return known[state, unit]

    for request in requests:
        state = 0
        for start, stop in request.units():
            columns = zip(request.ids[start:stop], request.blocks[start:stop], strict=True)
            state = follow(state, tuple(columns))
        for answer in request.continuations:
            list(accumulate((((token, CAUSAL),) for token in answer[:-1]), follow, initial=state))
    return tokens
