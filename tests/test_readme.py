"""What the README and the documents say is so."""

import re
from pathlib import Path

import pytest

import latentwire

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "latentwire"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def first_lines():
    """The README's first lines of Python."""
    return re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)


def test_the_first_lines_of_python_are_ten_at_most_and_run(capsys):
    code = first_lines()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names = {}
    exec(code.replace("limit=200", "limit=8"), names)
    latents, tokens = map(int, re.search(r"(\d+) latents in place of (\d+) tokens", code).groups())
    memory = names["memory"]
    assert memory.latents == latents
    assert len(memory.reader.format.before(memory.context, memory.reader)) == tokens
    assert memory.ask("When was Ada Brown born?") == "1957"
    assert len(names["frame"]) == 4 * 8
    assert "type_floor" in capsys.readouterr().out


def test_the_tree_shows_every_folder_of_the_package():
    tree = re.search(r"```\nsrc/latentwire/\n(.*?)```", README, re.DOTALL).group(1)
    shown, parents = set(), {}
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        if indent and name.endswith("/"):
            parents[indent] = name
            shown.add("".join(parents[at] for at in sorted(parents) if at <= indent))
    small = ("studies/templates/", "models/")  # data, and what one line of the tree says of them
    there = {f"{path.parent.relative_to(PACKAGE)}/" for path in PACKAGE.rglob("__init__.py")} - {"./"}
    deep = {folder for folder in there if folder.count("/") > 2}  # one line of the tree is enough for these
    assert shown - {folder for folder in small if (PACKAGE / folder).is_dir()} == there - deep - set(small)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_links_to_files_that_are_there(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_paths_of_the_repository_that_are_there(path):
    """Paths in backquotes below `src/`, `tests/`, `docs/` and `examples/`."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(r"`((?:src|tests|docs|examples)/[\w./-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_table_of_the_architecture_names_files_that_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = [
        name
        for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)
        for name in re.findall(r"`([\w/]+(?:/|\.py))`", row)
    ]
    assert named
    assert [name for name in named if not (PACKAGE / name).exists()] == []


def test_public_functions_that_the_readme_names_are_public():
    section = README.partition("## From Python")[2].partition("\n## ")[0]
    words = set(re.findall(r"`([a-z_]+)`", section.partition("| script")[0]))
    assert words - {"generate"} <= set(latentwire.__all__)


def test_pictures_are_readable_in_light_and_dark():
    for path in (ROOT / "docs").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert "<title" in text
        assert "<desc" in text
