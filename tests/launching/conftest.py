"""A rehearsal for each test; whatever it started is gone when it ends."""

from __future__ import annotations

import time
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
    ends = time.monotonic() + 30
    while processes(str(tmp_path)) and time.monotonic() < ends:  # on a busy machine a killed process takes a while
        time.sleep(0.1)
    assert processes(str(tmp_path)) == []
