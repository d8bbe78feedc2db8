"""Encoders: how a context becomes latents. A new one is a file and a line in `Encoder`."""

from typing import Annotated

from pydantic import Field

from latentwire.wires.latent.encoders.bytes import BytesEncoder
from latentwire.wires.latent.encoders.constant import ConstantEncoder
from latentwire.wires.latent.encoders.own import SelfEncoder
from latentwire.wires.latent.encoders.sentence import SentenceEncoder
from latentwire.wires.latent.encoders.source import SourceEncoder
from latentwire.wires.latent.encoders.tokens import TokensEncoder

__all__ = [
    "BytesEncoder",
    "ConstantEncoder",
    "Encoder",
    "SelfEncoder",
    "SentenceEncoder",
    "SourceEncoder",
    "TokensEncoder",
]

Encoder = Annotated[
    SelfEncoder | TokensEncoder | BytesEncoder | SentenceEncoder | ConstantEncoder | SourceEncoder,
    Field(discriminator="kind"),
]
