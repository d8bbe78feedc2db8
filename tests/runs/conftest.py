from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Command, command


@pytest.fixture
def latentwire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in `tmp_path`: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    return command(monkeypatch, capsys)
