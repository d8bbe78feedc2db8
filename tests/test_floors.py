"""The folders of the package are floors: whoever reads one of them need not know those above."""

import ast
import re
from pathlib import Path

import latentwire

FLOORS = (
    "cli",
    "launching",
    "api",
    "report",
    "estimates",
    "studies",
    "publishing",
    "exports",
    "runs",
    "training",
    "evaluation",
    "wires",
    "tasks",
    "lm",
    "models",
)


def test_imports_go_down_only():
    root = Path(latentwire.__file__).parent
    upwards = [
        f"{file.relative_to(root)}: {found}"
        for file in root.rglob("*.py")
        if (floor := file.relative_to(root).parts[0].removesuffix(".py")) in FLOORS
        for found in re.findall(r"^\s*(?:from|import) latentwire\.(\w+)", file.read_text(), re.MULTILINE)
        if found in FLOORS[: FLOORS.index(floor)]
    ]
    assert upwards == []


def test_no_modules_import_each_other_in_a_circle():
    """Imports for type checking and inside functions count too: a circle of any kind is two modules in one."""
    circles = [sorted(names) for names in _components(_import_graph())]
    assert circles == []


def test_a_circle_of_imports_would_be_found():
    assert _components({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def _import_graph() -> dict[str, set[str]]:
    """By module of the package, the modules of the package that it imports anywhere in its source."""
    root = Path(latentwire.__file__).parent
    files = {_module(file.relative_to(root.parent)): file for file in root.rglob("*.py")}
    graph = {}
    for name, file in files.items():
        imported = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= {each if each in files else node.module for each in submodules}
        graph[name] = imported & files.keys() - {name}
    return graph


def _module(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of more than one module, each of which imports all others of its set, directly or not."""

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    after = {name: reached(name) for name in graph}
    together = {frozenset({name, *(other for other in after[name] if name in after[other])}) for name in graph}
    return [set(names) for names in together if len(names) > 1]
