"""Encoders: how a context becomes latents.

A new encoder is a file and a line in `EncoderKind`; from outside, `kind: package.module:Class`.
"""

from typing import Annotated

from latentwire.kinds import KindOf
from latentwire.wires.latent.encoders.bytes import BytesConfig
from latentwire.wires.latent.encoders.constant import ConstantConfig
from latentwire.wires.latent.encoders.encoder import Encoder, EncoderConfig
from latentwire.wires.latent.encoders.self_encoder import SelfConfig
from latentwire.wires.latent.encoders.sentence import SentenceConfig
from latentwire.wires.latent.encoders.source import SourceConfig
from latentwire.wires.latent.encoders.tokens import TokensConfig

__all__ = [
    "BytesConfig",
    "ConstantConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderKind",
    "SelfConfig",
    "SentenceConfig",
    "SourceConfig",
    "TokensConfig",
]

EncoderKind = Annotated[
    SelfConfig | TokensConfig | BytesConfig | SentenceConfig | ConstantConfig | SourceConfig,
    KindOf(EncoderConfig),
]
