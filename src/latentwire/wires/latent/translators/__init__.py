"""Translators: how what a source holds becomes latents. A new one is a file and a line in `Translator`."""

from typing import Annotated

from pydantic import Field

from latentwire.wires.latent.translators.base import States
from latentwire.wires.latent.translators.cross import Cross
from latentwire.wires.latent.translators.dit import Dit, Flow
from latentwire.wires.latent.translators.mlp import ColumnMap, Mlp

__all__ = ["ColumnMap", "Cross", "Dit", "Flow", "Mlp", "States", "Translator"]

Translator = Annotated[Cross | Mlp | Dit, Field(discriminator="kind")]
