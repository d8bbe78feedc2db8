"""lm-eval's command line with `--model latentwire` registered."""

from __future__ import annotations

import os
import sys

from latentwire.errors import UserError
from latentwire.harness import register

# As in `latentwire.cli`: before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> None:
    """Run lm-eval with this process's arguments; bad input to this model ends in one sentence and status 2."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        print("latentwire: lm-eval is not installed; pip install 'latentwire[harness]'.", file=sys.stderr)
        raise SystemExit(2) from None
    from latentwire.tasks.harness_index import kept_index

    register()
    try:
        with kept_index():
            cli_evaluate()
    except UserError as error:
        print(f"latentwire: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
