"""One name is one thing: nobody has to ask which of two is meant."""

import ast
from collections import defaultdict
from pathlib import Path

import latentwire

PACKAGE = Path(latentwire.__file__).parent

FILES = {
    "__init__.py": "Python's own",
    "__main__.py": "Python's own",
    "base.py": "what the kinds beside it share",
    "evaluate.py": "a stage's file has the name of its kind, as YAML writes it",
    "finetune.py": "a stage's file has the name of its kind, as YAML writes it",
    "wire.py": "a stage's file has the name of its kind, as YAML writes it",
}
"""File names that may occur more than once, each with its reason."""
CLASSES: dict[str, str] = {}
"""Class names that may occur more than once, each with its reason."""


def repeated(places):
    return {name: sorted(where) for name, where in places.items() if len(where) > 1}


def test_no_file_name_occurs_twice():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        if path.name not in FILES:
            places[path.name].append(str(path.relative_to(PACKAGE)))
    assert repeated(places) == {}


def test_no_class_name_occurs_twice():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in CLASSES:
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert repeated(places) == {}
