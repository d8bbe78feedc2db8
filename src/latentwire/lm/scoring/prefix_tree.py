"""What requests have in common: the tokens that need to be read once only.

A request is a prompt with continuations. A continuation behind its prompt is a sequence, and sequences that begin
alike share their beginning as far as `blocks` allow: a token's state depends on what stands before it and on its
own block, so a beginning may end only where no block goes on (a legal cut). Under a causal mask every cut is legal
and the shared tokens are those of a trie (as in SGLang's RadixAttention, Zheng et al., 2312.07104); under `prefix`
only whole prompts are shared; under `segments` a passage is shared among its questions.
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
    """A prompt of tokens at the positions 0, 1, ... and the continuations to be scored behind it.

    ids, blocks: one a prompt token, at least one. continuations: token ids, none empty.
    """

    ids: Sequence[int]
    blocks: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @classmethod
    def of(cls, prefix: Prefix, continuations: Sequence[Sequence[Sequence[int]]]) -> list[Request] | None:
        """The rows of a prefix with the continuations of each.

        None where rows are not plain tokens: embeddings, memories, answers that join the prompt's block (`leaky`),
        or columns that are not the positions 0, 1, ... of one document.
        """
        if prefix.ids is None or prefix.memory is not None or prefix.leaky:
            return None
        columns = prefix.columns
        ahead = columns.positions[:, :1] * 0 + columns.positions.new_tensor(range(columns.width))
        # Valid columns come first when each is followed by no more valid ones than itself.
        holes = columns.valid[:, 1:] & ~columns.valid[:, :-1]
        strange = columns.valid & ((columns.positions != ahead) | (columns.documents != SHARED))
        if bool(holes.any()) or bool(strange.any()) or not bool(columns.valid[:, 0].all()):
            return None
        rows = zip(
            prefix.ids.tolist(), columns.blocks.tolist(), columns.valid.sum(1).tolist(), continuations, strict=True
        )
        return [cls(ids[:length], blocks[:length], behind) for ids, blocks, length, behind in rows]

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First and last token of every block."""
        backwards = list(reversed(self.blocks))
        ids = set(self.blocks) - {CAUSAL}
        return tuple((self.blocks.index(b), len(self.blocks) - 1 - backwards.index(b)) for b in ids)

    @cached_property
    def code(self) -> bytes:
        """The prompt's columns in an order and a form in which long comparisons are fast."""
        pairs = zip(self.ids, self.blocks, strict=True)
        return array("q", [token << 32 | block + 1 for token, block in pairs]).tobytes()

    def units(self) -> Iterator[tuple[int, int]]:
        """The smallest parts of the prompt that lie between legal cuts, as `(start, stop)`."""
        start = 0
        for stop in range(1, len(self.ids) + 1):
            if not any(first < stop <= last for first, last in self.spans):
                yield start, stop
                start = stop


@dataclass(frozen=True)
class Line:
    """A prompt with one continuation, of which the last token predicts nothing and is not read."""

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

    def shared(self, other: Line) -> int:
        """How many tokens both begin with, as far as the last cut that is legal in both."""
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
    """Tokens `start..stop-1` of sequence `of`, read alike by every sequence below.

    ends: the sequences that end with them. size: tokens of this node and of all below it.
    """

    start: int
    stop: int
    of: Line
    children: list[Node] = field(default_factory=list)
    ends: list[Line] = field(default_factory=list)
    size: int = 0

    @property
    def width(self) -> int:
        return self.stop - self.start

    def preorder(self) -> Iterator[Node]:
        """This node and all below it, parents first, children in order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)


def sequences(requests: Sequence[Request]) -> list[Line]:
    """Every continuation behind its prompt."""
    found = []
    for n, request in enumerate(requests):
        for k, answer in enumerate(request.continuations):
            behind = array("q", [token << 32 for token in answer[:-1]]).tobytes()
            found.append(Line(n, k, request, answer, request.code + behind))
    return found


def tree(requests: Sequence[Request]) -> Node:
    """The radix tree of all sequences; its root holds no token, its size is the number of tokens to read."""
    ordered = sorted(sequences(requests), key=lambda each: each.code)
    root = Node(0, 0, ordered[0])
    path, before = [root], None
    for each in ordered:
        shared = 0 if before is None else before.shared(each)
        while len(path) > 1 and path[-1].start >= shared:
            path.pop()
        top = path[-1]
        if top.stop > shared:
            top.children = [Node(shared, top.stop, top.of, top.children, top.ends)]
            top.stop, top.ends = shared, []
        if len(each) > shared:
            path.append(Node(shared, len(each), each, ends=[each]))
            top.children.append(path[-1])
        else:
            top.ends.append(each)
        before = each
    for node in reversed(list(root.preorder())):
        node.size = node.width + sum(child.size for child in node.children)
    return root


def minimum(requests: Sequence[Request]) -> int:
    """The fewest tokens that must run through a model to score the requests, each counted once.

    Counted apart from `tree`, unit by unit: equal units behind equal beginnings are one.
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
