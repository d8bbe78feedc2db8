"""Encoders: how a context becomes latents. A new one is a file and a line in `Encoder`."""

from latentwire.wires.latent.encoders.own import SelfEncoder

__all__ = ["Encoder", "SelfEncoder"]

Encoder = SelfEncoder
