"""The folders of the package are floors: whoever reads one of them need not know those above."""

import re
from pathlib import Path

import latentwire

FLOORS = ("cli", "api", "studies", "runs", "training", "evaluation", "wires", "tasks", "lm", "models")


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
