"""Training documents: prompts with the answers to be learned, as tokens, labels and blocks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from latentwire.errors import UserError
from latentwire.lm.model import LM
from latentwire.lm.prompts import CAUSAL
from latentwire.lm.scoring.questions import IGNORE
from latentwire.tasks.records import Turn
from latentwire.training.data import Source
from latentwire.wires import Wire


@dataclass(frozen=True)
class Document:
    """One prompt with its answer, or one conversation.

    Attributes:
        ids: Token ids.
        labels: The ids where the model answers, `IGNORE` elsewhere.
        blocks: Block ids of the mask, one a token.
        name: What messages call it.
    """

    ids: list[int]
    labels: list[int]
    blocks: list[int]
    name: str = ""

    @cached_property
    def answers(self) -> list[int]:
        """Tokens of each answer: a conversation has several."""
        runs = groupby(self.labels, lambda label: label != IGNORE)
        return [len(list(run)) for learned, run in runs if learned]


def document(source: Source, wire: Wire, lm: LM) -> Document:
    """The document that `wire` makes of an example or of a conversation.

    Raises:
        UserError: The wire delivers something other than tokens, which cannot be packed.
    """
    if isinstance(source, list):
        return _conversation(source, wire, lm)
    prompt, answers = lm.format.encode(source, lm)
    prefix = wire([prompt], lm)
    if prefix.ids is None or prefix.memory is not None:
        raise UserError(f"wire: {wire.label} delivers no plain tokens, so its rows cannot be packed.")
    answer = answers[max(source.gold, 0)] + lm.format.answer_end(lm)
    ids, blocks = prefix.ids[0].tolist(), prefix.columns.blocks[0].tolist()
    return Document(
        ids=ids + answer,
        labels=[IGNORE] * len(ids) + answer,
        blocks=blocks + [blocks[0] if prefix.leaky else CAUSAL] * len(answer),
        name=source.id,
    )


def _conversation(turns: Sequence[Turn], wire: Wire, lm: LM) -> Document:
    """Under `prefix` and `segments` every user turn is a block of its own; what the model says is causal."""
    if wire.kind != "text":
        raise UserError(
            f"wire: found {wire.label} for conversations, expected text: no context is delivered there."
        )
    ids: list[int] = []
    labels: list[int] = []
    blocks: list[int] = []
    causal = getattr(wire, "mask", "causal") == "causal"
    for at, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        before = lm.format.conversation(turns[:at], lm, answering=True)
        after = lm.format.conversation(turns[: at + 1], lm, answering=False)
        if after[: len(before)] != before or before[: len(ids)] != ids:
            raise UserError("data: the chat template rewrites earlier turns, so answers cannot be told apart.")
        blocks += [CAUSAL if causal else at] * (len(before) - len(ids)) + [CAUSAL] * (len(after) - len(before))
        labels += [IGNORE] * (len(before) - len(ids)) + after[len(before) :]
        ids = after
    return Document(ids, labels, blocks, name=f"the conversation {textwrap.shorten(turns[0][1], 40)!r}")
