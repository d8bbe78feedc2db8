"""LatentWire as a model of lm-eval: `lm_eval --model latentwire --model_args model=...,wire=...`.

lm-eval (0.4.13) finds models in its own list and among those that were registered in its process; it has no
entry points for others. So there are three ways in:

- `lm_eval --model latentwire`: at the end of `import torch`, PyTorch calls the entry points of the group
  `torch.backends`, and lm-eval imports PyTorch before it looks for a model. Ours registers the name there, and
  does nothing in a process that has not loaded lm-eval first. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
- `python -m latentwire.harness`: lm-eval's own command line with the name registered, whatever is installed how.
- `latentwire.harness.register()` in one's own program, before `lm_eval.simple_evaluate(model="latentwire")`.
"""

from __future__ import annotations

import sys
from importlib import import_module

NAME = "latentwire"


def register() -> None:
    """Make the model known to lm-eval; it is loaded when it is first asked for."""
    from lm_eval.api.registry import model_registry

    import_module("lm_eval.models")  # its own names, which it would not look for once there are others

    if NAME not in model_registry:
        model_registry.register(NAME, target="latentwire.harness.model:LatentWire")


def autoload() -> None:
    """Register if this is lm-eval's process. Called at the end of `import torch`, so it must never fail."""
    if "lm_eval" not in sys.modules:
        return
    try:
        register()
    except Exception as error:  # an lm-eval of another version: its own command must go on working
        print(f"latentwire: not registered with lm-eval ({error})", file=sys.stderr)
