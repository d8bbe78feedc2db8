"""Where classes from outside are imported from. Imports nothing large, since every command does it first."""

from __future__ import annotations

import sys
from pathlib import Path


def importable_here() -> None:
    """Let the current directory be imported from, as `python -m` does: a command's own file may lie there."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
