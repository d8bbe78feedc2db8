"""A stage acts for itself: nothing else in the package asks for its kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import latentwire
from latentwire.studies.stages import KINDS, base, training_stage

STAGES = {kind.__name__ for kind in (*KINDS, base.Stage, training_stage.TrainingStage)}
ASKING = {"isinstance", "issubclass"}


def asks_for_a_kind(source: str) -> Iterator[str]:
    """Every place of a module that asks whether something is a stage of some kind."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[*_, kinds]) if name in ASKING:
                asked: ast.AST = kinds
            case ast.MatchClass(cls=asked) | (ast.Compare() as asked):
                pass
            case _:
                continue
        if named(asked) & STAGES:
            yield ast.unparse(node)


def named(node: ast.AST) -> set[str]:
    """The last parts of all names in an expression."""
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names | {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}


def test_no_code_asks_for_the_kind_of_a_stage() -> None:
    root = Path(latentwire.__file__).parent
    asking = {str(file.relative_to(root)): list(asks_for_a_kind(file.read_text())) for file in root.rglob("*.py")}
    assert {file: found for file, found in asking.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(stage, Evaluate)",
        "isinstance(stage, Finetune | stages.TrainWire)",
        "issubclass(kind, (str, TrainingStage))",
        "type(stage) is Evaluate",
        "match stage:\n    case Finetune():\n        pass",
    ],
)
def test_every_way_to_ask_for_the_kind_of_a_stage_is_noticed(source: str) -> None:
    assert list(asks_for_a_kind(source))
