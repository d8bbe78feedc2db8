"""Real data for measuring, which lies beside the checkout; tests that need it skip where it does not."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared(name: str) -> Path:
    """The file `name` of that folder."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path
