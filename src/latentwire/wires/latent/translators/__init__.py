"""Translators: how the states of a source become latents.

A new translator is a file and a line in `TranslatorKind`; from outside, `kind: package.module:Class`.
"""

from typing import Annotated

from latentwire.kinds import KindOf
from latentwire.wires.latent.translators.cross import CrossConfig
from latentwire.wires.latent.translators.dit import DitConfig, DitTranslator
from latentwire.wires.latent.translators.mlp import MlpConfig, MlpTranslator
from latentwire.wires.latent.translators.translator import States, Translator, TranslatorConfig

__all__ = [
    "CrossConfig",
    "DitConfig",
    "DitTranslator",
    "MlpConfig",
    "MlpTranslator",
    "States",
    "Translator",
    "TranslatorConfig",
    "TranslatorKind",
]

TranslatorKind = Annotated[CrossConfig | MlpConfig | DitConfig, KindOf(TranslatorConfig)]
