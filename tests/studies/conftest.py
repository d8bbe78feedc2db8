from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentwire.runs.log import Log
from latentwire.studies import loading, runner
from latentwire.studies.runner import Carried
from tests.support.studies import Carry, small_study, written


@pytest.fixture
def carry(tmp_path: Path) -> Carry:
    """Carry out `small_study`, with `--set` changes, into `tmp_path/runs`."""

    def call(*changes: str, **options: Any) -> Carried:
        path = written(tmp_path, small_study())
        return runner.run(loading.load(str(path), changes), tmp_path / "runs", Log(), **options)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    """A whole small study, carried out without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    study = loading.load(str(written(folder, small_study())))
    return runner.run(study, folder / "runs", Log())
