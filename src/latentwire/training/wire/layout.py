"""The layout of a wire, chosen by its objectives where its settings name none."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from latentwire.errors import UserError
from latentwire.training.wire.wire_training_config import WireTraining
from latentwire.wires.latent.latent_config import LatentConfig


def settled(settings: WireTraining, log: Callable[[str], None]) -> WireTraining:
    """The settings with a definite layout: the wire's own, or the one that an objective asks for (`Term.layout`).

    Args:
        log: told of a layout that an objective chose.

    Raises:
        UserError: that layout does not go with the wire, or whole prompts are carried and the data has none.
    """
    wire = settings.wire
    wanted = [(term.layout, term.kind) for term in settings.objectives if term.layout is not None]
    if wire.carry == "context":
        # Latents of a context do not hold the question, so it must still be asked.
        wanted = [(layout, kind) for layout, kind in wanted if layout != "only"]
    if wire.layout is None and wanted:
        layout, kind = wanted[0]
        try:
            wire = LatentConfig.model_validate({**wire.model_dump(), "layout": layout})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"wire: {kind} chooses layout {layout}: {reason}.") from error
        log(f"layout: {layout}, chosen by {kind}")
    if wire.carry == "prompt" and not settings.data.asks:
        # Training would encode a bare piece of text, evaluation a worded prompt.
        raise UserError(
            f"data: found kind {settings.data.kind}, which has no questions, under carry: prompt; expected data "
            "with questions, or carry: context."
        )
    return settings.model_copy(update={"wire": wire})
