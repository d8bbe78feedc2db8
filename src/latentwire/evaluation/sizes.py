"""How large an arm's messages are and how many facts they hold: where the arm lies on a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from latentwire.evaluation.arms import Arm
from latentwire.evaluation.encoded import prepare, reader_of
from latentwire.lm.halving import Halving
from latentwire.lm.model import LM
from latentwire.lm.prompts import Prompt
from latentwire.tasks.base import Split, Task
from latentwire.tasks.world.tiers import stated
from latentwire.wires import Wire
from latentwire.wires.latent.latent_wire import Latent, LatentWireBase
from latentwire.wires.latent.message import Latents

SAMPLE = 32
"""How many contexts of a task are encoded to measure them."""
_AT_ONCE = 8


@dataclass(frozen=True)
class Size:
    """Means over contexts of one task.

    Attributes:
        series: what an arm has in common with the same arm at other sizes, such as `self, anchors`.
        bytes: of one message.
        latents: how many one message has; None where text is sent.
        facts: how many a context states; None where that is unknown.
    """

    series: str
    bytes: float
    latents: float | None
    facts: float | None


@torch.no_grad()
def message_sizes(
    lm: LM,
    tasks: Sequence[Task],
    arms: Mapping[str, Arm],
    split: Split,
    limit: int | None,
    halving: Halving | None = None,
) -> dict[str, dict[str, Size]]:
    """Message sizes by arm and task, for arms whose size says what reading them costs: their messages were not
    changed, except for rounding.

    Args:
        lm: the reader.
        tasks: whose contexts are encoded.
        arms: by name.
        split: which examples.
        limit: the first N of them; None takes all. At most 32 contexts of a task are encoded.
        halving: as in `evaluate`.

    Raises:
        UserError: as `evaluate`.
    """
    halving = halving or Halving()
    bound = {name: arm.bind(lm) for name, arm in arms.items() if _plain(arm)}
    sizes: dict[str, dict[str, Size]] = {name: {} for name in bound}
    for task in tasks:
        items = prepare(lm, task, split, SAMPLE if limit is None else min(SAMPLE, limit))
        facts = [stated(item.example.id) for item in items]
        known = [count for count in facts if count is not None]
        of_task = mean(known) if len(known) == len(facts) else None
        for name, arm in bound.items():
            wire = arm.prepared(lm, task, items)[0].wire
            sizes[name][task.name] = _size(
                wire, [item.prompt for item in items], reader_of(lm, task), of_task, halving
            )
    return sizes


def _plain(arm: Arm) -> bool:
    blank = isinstance(arm.wire, LatentWireBase) and arm.wire.control in ("zero", "mean")
    return arm.variant is None and arm.reader is None and not blank


def _size(wire: Wire, prompts: Sequence[Prompt], lm: LM, facts: float | None, halving: Halving) -> Size:
    sent: list[int] = []
    latents: list[int] = []

    def measured(part: Sequence[Prompt]) -> tuple[list[int], list[int]]:
        message = wire.send(part, lm)
        return message.nbytes(), message.valid.sum(1).tolist() if isinstance(message, Latents) else []

    def columns(part: Sequence[Prompt]) -> int:
        return len(part) * max(prompt.tokens for prompt in part)

    for at in range(0, len(prompts), _AT_ONCE):
        batch = prompts[at : at + _AT_ONCE]
        for _, (more, counts) in halving.read(
            batch, measured, columns, lambda prompt: f"{prompt.tokens:,} tokens"
        ):
            sent += more
            latents += counts
    return Size(_series(wire), mean(sent), mean(latents) if latents else None, facts)


def _series(wire: Wire) -> str:
    if not isinstance(wire, LatentWireBase):
        return wire.kind
    name = wire.kind
    if isinstance(wire, Latent):
        encoder = wire.modules.config.encoder
        chosen = getattr(encoder, "select", None)
        name = encoder.kind if chosen is None else f"{encoder.kind}, {chosen.kind}"
    return f"{name}, {wire.control}" if wire.control else name
