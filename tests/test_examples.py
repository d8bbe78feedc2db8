"""Every script in `examples/` runs from start to end."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *words, **options):
    """What an example's `main` returns."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)["main"](*words, **options)


@pytest.mark.slow
def test_a_mask_is_evaluated(monkeypatch):
    monkeypatch.setattr("latentwire.evaluation.audit.KERNELS", ("sdpa",))
    results = run("evaluate_mask", limit=6)
    assert results.arms == ["text", "text,mask=prefix", "none"]
    assert results.estimate("text", "macro").value > results.estimate("none", "macro").value


def test_a_passage_is_compressed_once_and_asked_twice(capsys):
    answers = run("compress_and_ask")
    assert answers["text"][0] == answers["embedded:heron-4x"][0] == "1957"
    assert answers["none"][0] != "1957"
    assert "bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wire_is_trained_and_read(tmp_path):
    trained, results = run("train_wire", tmp_path / "wire", steps=2, limit=4)
    assert (trained.folder / "checkpoints" / "best" / "wire.json").is_file()
    assert str(tmp_path / "wire") in results.arms


@pytest.mark.slow
def test_two_models_are_bridged(capsys):
    results = run("bridge_models", limit=16)
    assert results.estimate("embedded:heron-to-wren").value > results.estimate("none").value
    assert "embedded:heron-to-wren: closes" in capsys.readouterr().out


def test_a_wire_of_ones_own_is_evaluated():
    results = run("own_wire", limit=6)
    assert results.arms == ["text", "own_wire:KeyNorm,ratio=2", "nth,ratio=2", "none"]


def test_every_example_is_run_here():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = {name for name in scripts if f'run("{name}"' in Path(__file__).read_text()}
    assert scripts == tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 50
