"""What `import latentwire` shows, and what it does not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import latentwire


def test_every_public_name_is_completed_and_there():
    assert dir(latentwire) == latentwire.__all__
    assert all(getattr(latentwire, name) is not None for name in latentwire.__all__)


def test_every_public_name_is_typed_where_it_is_loaded_from():
    """The stubs under TYPE_CHECKING are the names that `__getattr__` gives, from the same modules."""
    tree = ast.parse(Path(latentwire.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    stubs = {node.names[0].asname: node.module for node in checked.body if isinstance(node, ast.ImportFrom)}
    assert stubs == {name: f"latentwire.{home}" for name, home in latentwire._HOME.items()}


def test_an_unknown_name_is_no_attribute():
    assert not hasattr(latentwire, "evalute")


def test_importing_the_package_loads_nothing_large():
    large = ["torch", "transformers", "pydantic", "numpy", "rich", "typer", "yaml"]
    code = f"import sys, latentwire; print([name for name in {large} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("command", "more"), [([], ["pydantic", "rich"]), (["eval"], []), (["runs"], [])])
def test_help_loads_nothing_large(command, more):
    """Typer itself needs pydantic for the options of a command, so that only the list of commands does without."""
    large = ["torch", "transformers", "numpy", "scipy", "yaml", *more]
    code = (
        f"import sys\nsys.argv = {['latentwire', *command, '--help']}\nfrom latentwire import cli\n"
        f"try:\n    cli.main()\nexcept SystemExit:\n    print([n for n in {large} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]")
