"""Encoders: how a context becomes latents. A new one is a file and a line in `Encoder`."""

from typing import Annotated

from pydantic import Field

from latentwire.wires.latent.encoders.constant import ConstantEncoder
from latentwire.wires.latent.encoders.own import SelfEncoder

__all__ = ["ConstantEncoder", "Encoder", "SelfEncoder"]

Encoder = Annotated[SelfEncoder | ConstantEncoder, Field(discriminator="kind")]
