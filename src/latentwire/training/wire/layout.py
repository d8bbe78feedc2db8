"""What the readers of a wire get beside its latents, where its settings leave that to the training."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from latentwire.errors import UserError
from latentwire.training.wire.config import Fit
from latentwire.wires.latent.latent_config import LatentConfig


def settled(settings: Fit, log: Callable[[str], None]) -> Fit:
    """The settings, with the layout that an objective wants (`Term.layout`) if the wire sets none; logged.

    Raises:
        UserError: what is wanted does not go with the wire, or the data has no questions to be carried.
    """
    wire = settings.wire
    wanted = [(each.layout, each.kind) for each in settings.objectives if each.layout is not None]
    if wire.carry == "context":
        # Latents of a context are not the question: somebody must still ask it.
        wanted = [(layout, kind) for layout, kind in wanted if layout != "only"]
    if wire.layout is None and wanted:
        layout, kind = wanted[0]
        try:
            wire = LatentConfig.model_validate({**wire.model_dump(), "layout": layout})
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"wire: {kind} chooses layout {layout}: {told}.") from error
        log(f"layout: {layout}, chosen by {kind}")
    if wire.carry == "prompt" and not settings.data.asks:
        # What is encoded would be a bare piece in training and a worded prompt wherever the wire is read.
        raise UserError(
            "data: found text, which makes no prompts, under carry: prompt, expected data with questions or "
            "carry: context."
        )
    return settings.model_copy(update={"wire": wire})
