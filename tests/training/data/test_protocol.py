"""Every kind of training data says what it can do; no code asks which kind it is."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import latentwire
from latentwire.training.data import DocumentData, PassageData, TrainingData

KINDS = sorted(
    {*get_args(get_args(DocumentData)[0]), *get_args(get_args(PassageData)[0])}, key=lambda k: k.__name__
)
NAMES = {kind.__name__ for kind in KINDS} | {TrainingData.__name__}


def kinds_asked_for(code: str) -> list[str]:
    """The kinds of training data that appear in an `isinstance` or `issubclass` call or in a class pattern."""
    asked = []
    for node in ast.walk(ast.parse(code)):
        places: list[ast.AST] = [node.cls] if isinstance(node, ast.MatchClass) else []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            places += node.args[1:]
        inner = [one for place in places for one in ast.walk(place)]
        asked += [name for one in inner if (name := getattr(one, "id", getattr(one, "attr", ""))) in NAMES]
    return asked


def test_no_code_asks_for_the_kind_of_training_data():
    files = Path(latentwire.__file__).parent.rglob("*.py")
    assert {str(file): asked for file in files if (asked := kinds_asked_for(file.read_text()))} == {}


@pytest.mark.parametrize(
    "code",
    ["isinstance(x, WorldData)", "isinstance(x.y, int | data.TaskData)", "match x:\n case TextData(): pass"],
)
def test_asking_for_a_kind_is_noticed(code):
    assert kinds_asked_for(code) != []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_training_data_that_says_what_it_holds_and_what_identifies_it(kind):
    assert issubclass(kind, TrainingData)
    assert not kind.__abstractmethods__
