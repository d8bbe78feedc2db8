"""LatentWire: how a decoder language model reads its context, and what happens when we change that.

The public names load what they need on first use, so that `import latentwire` and the command
line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentwire.errors import UserError as UserError
    from latentwire.lm.decoding import Decoding as Decoding
    from latentwire.lm.masks.blocks import blocks as blocks
    from latentwire.lm.model import LM as LM
    from latentwire.lm.prefix import Prefix as Prefix
    from latentwire.lm.prompt_format import PromptFormat as PromptFormat
    from latentwire.lm.prompts import Example as Example

__version__ = "0.1.0"

_HOME = {
    "LM": "lm.model",
    "Decoding": "lm.decoding",
    "Example": "lm.prompts",
    "Prefix": "lm.prefix",
    "PromptFormat": "lm.prompt_format",
    "UserError": "errors",
    "blocks": "lm.masks.blocks",
}
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
