"""What the two commands of the README install is locked by hash, at the versions of constraints.txt."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_LOCKED = {"torch"}
"""One version has many builds; see locked/run.txt."""


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(path):
    """Pinned versions by name."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    pins = [re.match(r"([\w.-]+)==([\w.+-]+)", line) for line in lines]
    return {normal(pin[1]): pin[2] for pin in pins if pin}


def wanted(extras=()):
    """Names of the packages that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            if line.startswith("latentwire["):
                inner = re.search(r"\[(.*)\]", line)[1].split(",")
                asked += [name for each in inner for name in project["optional-dependencies"][each]]
            else:
                asked.append(line)
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in asked}


@pytest.mark.parametrize(("path", "extras"), [("locked/run.txt", ()), ("locked/dev.txt", ("dev",))])
def test_every_dependency_is_locked(path, extras):
    assert wanted(extras) - NOT_LOCKED <= set(versions(path))


@pytest.mark.parametrize("path", ["locked/run.txt", "locked/dev.txt"])
def test_locked_versions_are_those_of_the_constraints(path):
    pinned, locked = versions("constraints.txt"), versions(path)
    differing = {name: (locked[name], pinned[name]) for name in locked.keys() & pinned.keys()}
    assert {name: pair for name, pair in differing.items() if pair[0] != pair[1]} == {}
    assert "torch" in pinned


@pytest.mark.parametrize("path", ["locked/run.txt", "locked/dev.txt"])
def test_every_locked_package_has_a_hash(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[\w.-]+==)", text)[1:]
    assert entries
    assert [entry.split("==")[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text, "no package index is named"
