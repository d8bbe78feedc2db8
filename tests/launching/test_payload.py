"""What a study needs travels with it, and nothing else."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from latentwire.errors import UserError
from latentwire.launching import payload
from tests.support.studies import small_study, written


@pytest.fixture(autouse=True)
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself is tested once, below."""
    monkeypatch.setattr(payload, "package", lambda: b"the package")


def study(folder: Path, model: str, data: str, **changes: object) -> str:
    """A study that reads a model's folder and a file."""
    tasks = [{"name": "mine", "kind": "jsonl", "data": data}]
    stages = {"read": {"kind": "evaluate", "arms": {"text": "text", "relay": f"relay,source={model},ratio=4"}}}
    raw = {"name": "own", "model": model, "tasks": tasks, "stages": stages, **changes}
    return str(written(folder, raw))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model and data below it and data elsewhere."""
    here = tmp_path / "here"
    for folder in (here / "models" / "tiny", tmp_path / "elsewhere", here / "text"):
        folder.mkdir(parents=True)
    (here / "models" / "tiny" / "config.json").write_text("{}")
    (here / "models" / "tiny" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "elsewhere" / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(here)
    return here


def test_relative_inputs_keep_their_paths_and_the_study_its_bytes(inputs: Path) -> None:
    (inputs / "rows.jsonl").write_text("{}\n")
    path = study(inputs, "models/tiny", "rows.jsonl")
    load = payload.gather(path)
    pieces = {piece.path: piece for piece in load.pieces}
    assert {"work/models/tiny/config.json", "work/models/tiny/model.safetensors", "work/rows.jsonl"} <= set(pieces)
    assert pieces["work/study.yaml"].source == Path(path).read_bytes()
    assert not [name for name in pieces if name.startswith("work/text")], "a folder called like a kind of wire"


def test_inputs_from_elsewhere_get_a_place_and_the_study_names_it(inputs: Path) -> None:
    rows, model = inputs.parent / "elsewhere" / "rows.jsonl", inputs / "models" / "tiny"
    load = payload.gather(study(inputs, str(model), str(rows)))
    pieces = {piece.path: piece for piece in load.pieces}
    sent = yaml.safe_load(pieces["work/study.yaml"].source)
    data, there = sent["tasks"][0]["data"], sent["model"]
    assert not Path(data).is_absolute()
    assert pieces[f"work/{data}"].sha256 == payload.Piece.of("", rows).sha256
    assert pieces[f"work/{there}/model.safetensors"].size == len(b"weights")
    assert sent["stages"]["read"]["arms"]["relay"] == f"relay,source={there},ratio=4"


def test_a_change_on_the_command_line_brings_its_file(inputs: Path) -> None:
    rows = inputs.parent / "elsewhere" / "rows.jsonl"
    (inputs / "rows.jsonl").write_text("{}\n")
    load = payload.gather(study(inputs, "models/tiny", "rows.jsonl"), [f"tasks.0.data={rows}"])
    key, _, there = load.changes[0].partition("=")
    assert key == "tasks.0.data"
    assert f"work/{there}" in {piece.path for piece in load.pieces}


def test_a_wire_of_your_own_brings_its_module(inputs: Path) -> None:
    (inputs / "mypress.py").write_text("class KeyNorm: ...\n")
    assert "mypress.py" in list(payload._tokens("mypress:KeyNorm,ratio=4"))
    assert payload._place("mypress.py") == "mypress.py"


def test_a_wrong_study_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    path = written(tmp_path, small_study(nonsense=1))
    with pytest.raises(UserError, match="nonsense"):
        payload.gather(str(path))


def test_the_requirements_are_the_locked_ones_with_hashes() -> None:
    locked, constraints = payload.requirements()
    assert "--hash=sha256:" in locked
    assert re.search(r"^torch==", constraints, re.MULTILINE)
    assert not re.search(r"^torch==", locked, re.MULTILINE)


def test_installed_from_elsewhere_it_takes_the_versions_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload.latentwire, "__file__", str(tmp_path / "a" / "b" / "latentwire" / "__init__.py"))
    locked, constraints = payload.requirements()
    pins = dict(line.split("==") for line in locked.splitlines())
    assert {"transformers", "safetensors", "numpy", "pydantic-core"} <= set(pins)
    assert not {"torch", "latentwire", "pytest"} & set(pins)
    assert constraints.startswith("torch==")


@pytest.mark.slow
def test_the_package_is_the_same_bytes_twice_and_holds_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    first = payload.package()
    assert first == payload.package()
    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        names = archive.getnames()
    assert {"latentwire/cli/__main__.py", "latentwire/launching/install.sh"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
