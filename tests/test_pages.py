"""The code of the documentation runs, and prints what the pages say."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from latentwire.evaluation import costs
from tests.support.pages import Block, blocks, matches, quick, run

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    path
    for folder in (".", "tutorials", "how-to", "explanation", "reference")
    for path in sorted((DOCS / folder).glob("*.md"))
    if any(block.runs for block in blocks(path))
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, from which modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def carry_out(path, desk, capsys, *, whole):
    """What differs from a page when its blocks are run in order."""
    names, wrong = {}, []
    for block in blocks(path):
        if block.file is not None:
            (desk / block.file).write_text(block.text, encoding="utf-8")
        elif block.runs and (whole or not block.slow):
            wrong += run(block, names, capsys, whole=whole)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path, desk, capsys, monkeypatch):
    """With few examples, costs measured once, and without what is marked slow."""
    monkeypatch.setitem(inspect.unwrap(costs.measure).__kwdefaults__, "repeats", 1)
    assert carry_out(path, desk, capsys, whole=False) == []


def whole(path):
    """A page as a case: the beginner's pages with the slow tests, the others with the sweep."""
    mark = pytest.mark.slow if path.stem in ("index", "start") else pytest.mark.sweep
    return pytest.param(path, id=path.stem, marks=mark)


@pytest.mark.parametrize("path", [whole(path) for path in PAGES])
def test_a_page_shows_what_its_code_prints(path, desk, capsys, monkeypatch):
    monkeypatch.setitem(inspect.unwrap(costs.measure).__kwdefaults__, "repeats", costs.REPEATS)
    assert carry_out(path, desk, capsys, whole=True) == []


def test_pages_have_code_that_runs():
    assert {"start", "bidirectional", "latents", "bridge", "my-data", "my-wire"} <= {path.stem for path in PAGES}


def test_outputs_are_compared_with_some_tolerance():
    assert matches("score 0.950 [0.887, ...] in ... s", "score 0.951 [0.89, 0.98] in 3 s")
    assert not matches("score 0.950", "score 0.850")
    assert not matches("score 0.950", "rank 0.950")
    assert matches("off by 6.7e-07", "off by 4.9e-07")
    assert not matches("off by 6.7e-07", "off by 6.7e-04")
    assert not matches("off by 6.7e-07", "off by 0.0e+00")
    assert not matches("one line", "one line\nand another")


def test_quick_runs_use_few_examples():
    assert quick("eval --limit 200 --wire a") == "eval --limit 4 --wire a"
    assert quick("evaluate(m, limit=500)") == "evaluate(m, limit=4)"


def test_a_command_goes_on_after_a_backslash():
    block = Block("console", "$ latentwire eval \\\n    --limit 2\nout\n")
    assert list(block.commands()) == [("latentwire eval      --limit 2", "out\n")]
