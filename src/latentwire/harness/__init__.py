"""LatentWire as a model of lm-eval: `lm_eval --model latentwire --model_args model=...,wire=...`.

lm-eval (0.4.13) knows the models in its own list and those registered in its process; it has no entry points for
others. There are three ways to register this one:

- `lm_eval --model latentwire`: PyTorch calls the entry points of the group `torch.backends` at the end of
  `import torch`, and lm-eval imports PyTorch before it looks for a model. Our entry point registers the name, and
  does nothing in a process that has not imported lm-eval first. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
- `python -m latentwire.harness`: lm-eval's command line with the name registered, also where the package is not
  installed.
- `latentwire.harness.register()` in your own program, before `lm_eval.simple_evaluate(model="latentwire")`.
"""

from __future__ import annotations

import sys
from importlib import import_module

NAME = "latentwire"


def register() -> None:
    """Register the model with lm-eval; its module is imported on first use."""
    from lm_eval.api.registry import model_registry

    import_module("lm_eval.models")  # registers lm-eval's own names, which it does only while there are none

    if NAME not in model_registry:
        model_registry.register(NAME, target="latentwire.harness.harness_model:HarnessModel")


def autoload() -> None:
    """Register if this process has imported lm-eval. It runs at the end of `import torch`, so it must not fail."""
    if "lm_eval" not in sys.modules:
        return
    try:
        register()
    except Exception as error:  # lm-eval of another version: its own command must keep working
        print(f"latentwire: not registered with lm-eval ({error})", file=sys.stderr)
