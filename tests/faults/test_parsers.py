"""Whatever stands in a spelling or a file, a parser gives a value or one sentence."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentwire.errors import UserError
from latentwire.evaluation import arms
from latentwire.lm.loading import gguf_files
from latentwire.lm.prompt_settings import PromptSettings
from latentwire.runs.store import Run
from latentwire.tasks import resolve
from latentwire.wires import parse
from tests.support.checkpoints import write_gguf

FEW, MANY = 50, 4000
"""How many inputs of each parser the normal suite and the sweep try."""

PIECES = """
text none budget repeat leaky nth evict prune relay tokens ratio mask layers prefix causal source question
embedded: heron stage: deranged zero mean 4bit @ : , = - .. / 0 1 4 1e9 -1 nan inf true 0-1 5-2 kind
"""
WORDS = st.sampled_from(PIECES.split())
SPELLINGS = st.lists(WORDS | st.text(max_size=4), max_size=9).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=6), inside, max_size=3),
    max_leaves=6,
)


def fields(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Mappings with some of these keys, and others."""
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=5), JSON, max_size=len(names))


@cache
def place() -> Path:
    return Path(mkdtemp(prefix="latentwire-tests-"))


@cache
def gguf_bytes() -> bytes:
    write_gguf(place() / "whole.gguf")
    return (place() / "whole.gguf").read_bytes()


def wire(text: str) -> None:
    parse(text)


def arm(text: str) -> None:
    arms.parse(text)


def prompt_file(content: Any) -> None:
    path = place() / "prompts.yaml"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    PromptSettings.read(path)


def run_record(content: Any) -> None:
    (place() / "run.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    Run.read(place())


def lines(content: Any) -> None:
    path = place() / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else "\n".join(map(json.dumps, content)).encode())
    (task,) = resolve(["jsonl"], path)
    list(task.examples("test"))


def gguf_header(change: tuple[int, bytes, int]) -> None:
    at, junk, end = change
    whole = gguf_bytes()
    at %= 4000  # the header and the vocabulary; a changed weight is another weight
    path = place() / "changed.gguf"
    path.write_bytes((whole[:at] + junk + whole[at + len(junk) :])[: len(whole) - end])
    with gguf_files.parsed_once(path) as reader:
        gguf_files.metadata(reader, "tokenizer.ggml.tokens")


ROWS = st.lists(fields("context", "question", "answers", "answer", "choices", "gold", "id", "group"), max_size=4)
RECORDS = fields("run", "study", "stage", "kind", "status", "identity", "configuration", "times", "versions")
PARSERS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "wires": (wire, SPELLINGS),
    "arms": (arm, SPELLINGS),
    "prompt files": (prompt_file, fields("template", "instruction", "system", "anchor") | JSON | st.binary()),
    "run.json": (run_record, RECORDS | JSON | st.binary()),
    "JSON lines": (lines, ROWS | st.lists(JSON, max_size=3) | st.binary()),
    "GGUF headers": (gguf_header, st.tuples(st.integers(0, 4000), st.binary(max_size=9), st.integers(0, 99))),
}


def problems(name: str, count: int) -> None:
    """Try `count` inputs of a parser, always the same ones; the first that ends otherwise is shown in short."""
    parser, inputs = PARSERS[name]
    always_the_same = settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )

    def every(value: Any) -> None:
        said = "a value"
        try:
            parser(value)
        except UserError as error:
            said = str(error).strip()
        assert said
        assert "\n" not in said

    always_the_same(given(inputs)(every))()


needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
NAMES = [pytest.param(name, marks=needs_gguf if "GGUF" in name else ()) for name in PARSERS]


@pytest.mark.parametrize("name", NAMES)
def test_a_parser_gives_a_value_or_one_sentence(name: str) -> None:
    problems(name, FEW)


@pytest.mark.sweep
@pytest.mark.parametrize("name", NAMES)
def test_a_parser_gives_a_value_or_one_sentence_for_thousands_of_inputs(name: str) -> None:
    problems(name, MANY)


def test_a_name_with_a_line_break_or_a_terminals_escape_is_shown_in_one_line() -> None:
    for parser, content in ((prompt_file, {"a\nb": None}), (lines, [{"\x1b[31mc": []}])):
        with pytest.raises(UserError) as error:
            parser(content)
        assert str(error.value).isprintable()
