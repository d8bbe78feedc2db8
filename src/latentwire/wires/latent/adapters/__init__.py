"""Adapters: what makes latents readable for one model. Each reader of a wire has its own.

An adapter turns `Latents` into `Delivered`: soft tokens in the reader's input, keys and values of all its layers,
or both. `Fuse` changes the keys and values that the reader has of the text itself. A new one is a file and a line
in `Adapter`.
"""

from typing import Annotated

from pydantic import Field

from latentwire.wires.latent.adapters.base import Delivered
from latentwire.wires.latent.adapters.both import Both
from latentwire.wires.latent.adapters.deep_prefix import DeepPrefix
from latentwire.wires.latent.adapters.embeddings import Embeddings
from latentwire.wires.latent.adapters.fuse import Fuse
from latentwire.wires.latent.adapters.native import Native
from latentwire.wires.latent.adapters.projected import Projected

__all__ = ["Adapter", "Both", "DeepPrefix", "Delivered", "Embeddings", "Fuse", "Native", "Projected"]

Adapter = Annotated[Native | Embeddings | DeepPrefix | Projected | Both | Fuse, Field(discriminator="kind")]
