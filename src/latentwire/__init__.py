"""LatentWire: how a decoder language model reads its context, and what happens when we change that.

The public names load what they need on first use, so that `import latentwire` and the command
line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentwire.version import __version__ as __version__

if TYPE_CHECKING:
    from latentwire.api.auditing import audit as audit
    from latentwire.api.compressed import Compressed as Compressed
    from latentwire.api.compressed import compress as compress
    from latentwire.api.results import Results as Results
    from latentwire.api.results import evaluate as evaluate
    from latentwire.api.spelling import load as load
    from latentwire.api.spelling import task as task
    from latentwire.api.spelling import wire as wire
    from latentwire.api.study_results import OpenedRun as OpenedRun
    from latentwire.api.study_results import StudyResults as StudyResults
    from latentwire.api.study_results import open_run as open_run
    from latentwire.api.study_results import run_study as run_study
    from latentwire.api.wire_training import TrainedWire as TrainedWire
    from latentwire.api.wire_training import train as train
    from latentwire.errors import UserError as UserError
    from latentwire.evaluation.outcomes import Outcome as Outcome
    from latentwire.evaluation.statistics import Comparison as Comparison
    from latentwire.evaluation.statistics import Estimate as Estimate
    from latentwire.lm.decoding import Decoding as Decoding
    from latentwire.lm.decoding import DecodingSettings as DecodingSettings
    from latentwire.lm.masks.blocks import blocks as blocks
    from latentwire.lm.model import LM as LM
    from latentwire.lm.prefix import Prefix as Prefix
    from latentwire.lm.prompt_format import PromptFormat as PromptFormat
    from latentwire.lm.prompt_settings import PromptSettings as PromptSettings
    from latentwire.lm.prompts import Example as Example
    from latentwire.tasks.base import Task as Task
    from latentwire.wires.scored import ScoredWire as ScoredWire
    from latentwire.wires.text_wire import TextWire as TextWire
    from latentwire.wires.wire import Message as Message
    from latentwire.wires.wire import Wire as Wire

_HOME = {
    "LM": "lm.model",
    "Comparison": "evaluation.statistics",
    "Compressed": "api.compressed",
    "Decoding": "lm.decoding",
    "DecodingSettings": "lm.decoding",
    "Estimate": "evaluation.statistics",
    "Example": "lm.prompts",
    "Message": "wires.wire",
    "OpenedRun": "api.study_results",
    "Outcome": "evaluation.outcomes",
    "Prefix": "lm.prefix",
    "PromptFormat": "lm.prompt_format",
    "PromptSettings": "lm.prompt_settings",
    "Results": "api.results",
    "ScoredWire": "wires.scored",
    "StudyResults": "api.study_results",
    "Task": "tasks.base",
    "TextWire": "wires.text_wire",
    "TrainedWire": "api.wire_training",
    "UserError": "errors",
    "Wire": "wires.wire",
    "audit": "api.auditing",
    "blocks": "lm.masks.blocks",
    "compress": "api.compressed",
    "evaluate": "api.results",
    "load": "api.spelling",
    "open_run": "api.study_results",
    "run_study": "api.study_results",
    "task": "api.spelling",
    "train": "api.wire_training",
    "wire": "api.spelling",
}
"""Where each public name lives, below this package."""
__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
