"""A rehearsal for each test; whatever it started is gone when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from latentwire.launching import depot
from tests.support.launches import Rehearsal, processes


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    """A home and a far folder."""
    made = Rehearsal(tmp_path)
    yield made
    depot.main("kill", made.far / "place")
    assert processes(str(tmp_path)) == []
