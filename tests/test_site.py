"""The documentation site builds without a warning, holds what it promises, and needs no network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import latentwire
from latentwire.studies.study_schema import study_schema

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
pytest.importorskip("furo")
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("site")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make site` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", out]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


def page(site, name):
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_every_public_name_is_documented(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    names = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert {f"latentwire.{name}" for name in latentwire.__all__ if name != "__version__"} <= names


def test_every_command_is_documented(site):
    helped = subprocess.run(
        [sys.executable, "-m", "latentwire.cli", "--help"], capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"^  ([a-z]+) ", helped.partition("Commands:")[2], re.MULTILINE)
    assert len(commands) >= 9
    text = page(site, "reference/commands")
    assert [name for name in commands if f"latentwire {name}" not in text] == []


def test_every_key_of_a_study_is_documented(site):
    schema = study_schema()
    pages = "".join(page(site, f"reference/{name}-keys") for name in ("study", "stage", "wire", "objective"))
    shown = set(re.findall(r'<span class="pre">(\w+)</span>', pages))
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", {})}
    assert keys - shown - {"kind"} == set()


def test_search_is_built_in(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index[index.index("(") + 1 : index.rindex(")")])["terms"]
    assert {"leak", "wire"} <= terms.keys()


def test_no_page_loads_anything_from_the_network(site):
    loading = re.compile(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?:)?//[^"]*"')
    loud = {path.name: found[0] for path in site.rglob("*.html") if (found := loading.search(path.read_text()))}
    assert loud == {}
