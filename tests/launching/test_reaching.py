"""A machine is reached, and an environment made on it, whatever its login shell and its PATH say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.errors import UserError
from latentwire.launching import far_machine, transport
from latentwire.launching.far_machine import FarMachine
from latentwire.launching.transport import Here, OverSsh, Unreachable, converse

INSTALL = Path(far_machine.__file__).parent / "install.sh"


def test_a_python_is_found_with_none_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no uv: the earlier launches died of either."""
    monkeypatch.setattr(transport, "PATH", str(tmp_path / "nothing"))
    for command in ("mkdir", "env"):
        (tmp_path / "nothing").mkdir(exist_ok=True)
        (tmp_path / "nothing" / command).symlink_to(f"/usr/bin/{command}")
    places = f"/nowhere {Path(sys.base_prefix) / 'bin'}"
    machine = FarMachine.reach(Here(tmp_path), "place", None, places)
    assert Path(machine.python).parent == Path(sys.base_prefix) / "bin"
    assert machine.uv == ""
    assert machine.folder == str(tmp_path / "place")


def test_a_machine_without_any_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no Python 3.11 or newer.*--python"):
        FarMachine.reach(Here(tmp_path), "place", None, "/nowhere")
    with pytest.raises(UserError, match="found no usable Python at /nowhere/python"):
        FarMachine.reach(Here(tmp_path), "place", "/nowhere/python")


def test_an_old_python_is_passed_over(tmp_path: Path) -> None:
    for folder, script in (("old", "exit 1"), ("new", f'exec {sys.executable} "$@"')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "python3.12").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / folder / "python3.12").chmod(0o755)
    machine = FarMachine.reach(Here(tmp_path), "place", None, f"{tmp_path}/old {tmp_path}/new")
    assert machine.python == f"{tmp_path}/new/python3.12"


def test_what_a_login_shell_prints_is_not_the_answer() -> None:
    noisy = ["/bin/sh", "-c", 'echo "Welcome to the machine"; eval "$0"']
    answer = converse(noisy, "printf answer; printf problem >&2; exit 3", dict(os.environ), None, None, 20)
    assert (answer.status, answer.out, answer.err) == (3, b"answer", "problem")


def test_variables_of_this_shell_do_not_leak_into_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "yes")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    said = Here(tmp_path).run("env").text
    names = {line.partition("=")[0] for line in said.splitlines()}
    assert not {"SECRET_OF_MINE", "PYTHONPATH", "CUDA_VISIBLE_DEVICES"} & names


def test_a_machine_that_falls_silent_counts_as_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no answer in"):
        Here(tmp_path).run("printf some; sleep 60", timeout=0.3)


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with pytest.raises(Unreachable, match=r"ssh:127\.0\.0\.1:9"):
        OverSsh("127.0.0.1", 9).run("true")


class Installation:
    """An installation with a Python and a pip that only note what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.environment, self.notes = folder, folder / "environments" / "x", folder / "notes"
        (folder / "requirements").mkdir()
        (folder / "requirements" / "locked.txt").write_text("numpy==1 \\\n    --hash=sha256:00\n")
        (folder / "requirements" / "constraints.txt").write_text("torch==2\n")
        note = f'#!/bin/sh\necho "$(basename "$0") $*" >> {self.notes}\n'
        copy = '[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"\n'
        self._program("python", note + copy + '[ ! -e "$(dirname "$0")/../../../broken" ]\n')
        self._program("uv", note + f"[ ! -e {folder}/uv_fails ]\n")

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def run(self, uv: bool = False) -> int:
        """What the script ends with."""
        words = [f"{self.folder}/python", str(self.environment), f"{self.folder}/requirements"]
        words.append(f"{self.folder}/uv" if uv else "")
        return subprocess.run(["/bin/sh", str(INSTALL), *words], env={"PATH": "/usr/bin:/bin"}).returncode

    def asked(self) -> list[str]:
        """What Python and uv were asked since the last time."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return lines


def test_requirements_are_installed_by_hash_and_torch_alone(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert installation.run() == 0
    venv, locked, torch = installation.asked()
    assert venv == f"python -m venv {installation.environment}"
    assert "pip install" in locked
    assert "--require-hashes --no-deps" in locked
    assert torch.endswith(f"--constraint {tmp_path}/requirements/constraints.txt torch")
    assert installation.run() == 0
    assert installation.asked() == [], "a complete environment is left alone"


def test_a_broken_installation_is_begun_anew(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    (tmp_path / "broken").touch()
    assert installation.run() != 0
    (tmp_path / "broken").unlink()
    installation.asked()
    assert installation.run() == 0
    assert len(installation.asked()) == 3


def test_uv_is_used_where_it_is_and_never_needed(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert installation.run(uv=True) == 0
    assert [line.split()[0] for line in installation.asked()] == ["python", "uv", "uv"]
    (installation.environment / ".complete").unlink()
    (tmp_path / "uv_fails").touch()
    assert installation.run(uv=True) == 0
    assert [line.split()[0] for line in installation.asked()] == ["python", "uv", "python", "uv", "python"]
