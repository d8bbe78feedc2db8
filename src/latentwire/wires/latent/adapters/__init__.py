"""Adapters: what makes latents readable for one model. Each reader of a wire has its own.

An adapter turns `Latents` into `Delivered`: soft tokens in the reader's input, keys and values of all its layers,
or both. `FuseConfig` changes the keys and values that the reader has of the text itself. A new adapter is a file
and a line in `AdapterKind`; from outside, `kind: package.module:Class`.
"""

from typing import Annotated

from latentwire.kinds import KindOf
from latentwire.wires.latent.adapters.adapter import Adapter, AdapterConfig, Delivered
from latentwire.wires.latent.adapters.both import BothConfig
from latentwire.wires.latent.adapters.deep_prefix import DeepPrefixConfig
from latentwire.wires.latent.adapters.embeddings import EmbeddingsConfig
from latentwire.wires.latent.adapters.fuse import FuseConfig
from latentwire.wires.latent.adapters.native import NativeConfig
from latentwire.wires.latent.adapters.projected import ProjectedConfig

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterKind",
    "BothConfig",
    "DeepPrefixConfig",
    "Delivered",
    "EmbeddingsConfig",
    "FuseConfig",
    "NativeConfig",
    "ProjectedConfig",
]

AdapterKind = Annotated[
    NativeConfig | EmbeddingsConfig | DeepPrefixConfig | ProjectedConfig | BothConfig | FuseConfig,
    KindOf(AdapterConfig),
]
