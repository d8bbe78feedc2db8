"""Whoever reads a public name learns what it is, what it takes, and how it is used."""

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest

import latentwire

PACKAGE = Path(latentwire.__file__).parent
PUBLIC = [name for name in latentwire.__all__ if name != "__version__"]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(getattr(latentwire, name))]
CLASSES = [name for name in PUBLIC if inspect.isclass(getattr(latentwire, name))]


def public(body):
    """Functions and classes of a module or class body that are nobody's own."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def section(doc, title):
    """The text of a section of a docstring in Google's style."""
    found = re.search(rf"^{title}:\n(.*?)(?=^\w+:\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    return found.group(1) if found else ""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_function_and_class_says_what_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [node.name for node in public(tree.body) if not ast.get_docstring(node)]
    if tree.body and not ast.get_docstring(tree):
        silent.append("the module")
    assert silent == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_method_of_an_exported_class_says_what_it_does(name):
    """Its own docstring or that of the method it overrides."""
    owner = getattr(latentwire, name)
    silent = []
    for method, value in vars(owner).items():
        target = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        told = inspect.isfunction(target) or isinstance(target, property)
        if told and not method.startswith("_") and not inspect.getdoc(getattr(owner, method)):
            silent.append(method)
    assert silent == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_exported_function_has_types_and_says_what_it_takes_and_returns(name):
    function = getattr(latentwire, name)
    doc, signature = inspect.getdoc(function), inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    told = section(doc, "Args")
    assert [
        each for each in signature.parameters if not re.search(rf"^    .*\b{each}\b.*:", told, re.MULTILINE)
    ] == []
    assert section(doc, "Returns") or section(doc, "Yields") or "contextmanager" in doc.lower() or name == "blocks"


@pytest.mark.parametrize("name", PUBLIC)
def test_an_exported_name_has_an_example(name):
    assert section(inspect.getdoc(getattr(latentwire, name)), "Example")


@pytest.mark.parametrize("name", PUBLIC)
def test_the_complete_examples_of_an_exported_name_hold(name):
    """Those that begin with their imports; others are excerpts."""
    value = getattr(latentwire, name)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    for test in finder.find(value, name):
        if test.docstring and "import latentwire" in test.docstring:
            runner.run(test)
    assert runner.failures == 0
