"""The code blocks of the documents, run as a reader would run them.

A block's first line says how: `python` or `console`, and after it `slow` (only with the slow tests) or `no-run`.
A block `{code-block}` with a `:caption:` is a file that the reader has written. In a `console` block, lines that
start with `$` are commands, and what follows is what they print; `...` stands for anything.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer

from latentwire.cli import app
from latentwire.errors import UserError

QUICK = "4"
"""The limit that quick runs use in place of the one that is written."""
_FENCE = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w])")


@dataclass
class Block:
    """One code block: its language, the words after it, and the name of the file that it is, if any."""

    language: str
    text: str
    words: list[str] = field(default_factory=list)
    file: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in ("python", "console") and "no-run" not in self.words and self.file is None

    @property
    def slow(self) -> bool:
        return "slow" in self.words

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a console block, and what it prints."""
        joined = self.text.replace("\\\n", " ")
        for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def blocks(path: Path) -> list[Block]:
    """The code blocks of a document, in order."""
    made = []
    for _, head, body in _FENCE.findall(path.read_text(encoding="utf-8")):
        words = head.split()
        if words[:1] == ["{code-block}"]:
            caption = re.search(r"^:caption: (.*)$", body, re.MULTILINE)
            text = re.sub(r"\A(:[\w-]+:.*\n)*\n?", "", body)
            made.append(Block(words[1], text, file=caption[1] if caption else None))
        elif words:
            made.append(Block(words[0], body, words[1:]))
    return made


def quick(text: str) -> str:
    """The same code with few examples."""
    return re.sub(r"((?:--limit |--set limit=|\blimit=))\d+", rf"\g<1>{QUICK}", text)


def run(block: Block, names: dict[str, object], capture: object, *, whole: bool) -> list[str]:
    """Run one block in the current directory.

    Args:
        names: What the page's Python has defined so far.
        capture: Pytest's `capsys`.
        whole: Run it as written and compare what it prints; otherwise with few examples.

    Returns:
        What differs from the document, one text for each command.
    """
    if block.language == "python":
        exec(compile(block.text if whole else quick(block.text), "<document>", "exec"), names)
        return []
    wrong = []
    for command, expected in block.commands():
        shortened = quick(command)
        printed = _output(command if whole else shortened, capture)
        if (whole or shortened == command) and not matches(expected, printed):
            wrong.append(f"$ {command}\n{printed}\n-- but the document says --\n{expected}")
    return wrong


def _output(command: str, capture: object) -> str:
    words = shlex.split(command)
    if words[0] != "latentwire":
        return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    capture.readouterr()
    status = 0
    try:
        status = app(words[1:], standalone_mode=False) or 0
    except typer.Exit as ended:
        status = ended.exit_code
    except UserError as error:
        return f"latentwire: {error}"
    printed = capture.readouterr().out
    return printed if not status else f"{printed}exit status {status}\n"


def matches(expected: str, printed: str) -> bool:
    """Whether an output is what a document says: the same words, numbers within 0.03 or 3 %, `...` for all.

    Numbers with an exponent are rounding, which another processor does otherwise: within a factor of ten.
    """
    parts = " ".join(expected.split()).split("...")
    rest, at = " ".join(printed.split()), 0
    for n, part in enumerate(parts):
        last = n == len(parts) - 1
        pattern = re.compile(_words(part.strip()) + (r"\Z" if last else ""))
        found = pattern.search(rest, at) if n else pattern.match(rest)
        if found is None:
            return False
        if not all(map(_near, _NUMBER.findall(part), found.groups())):
            return False
        at = found.end()
    return True


def _words(part: str) -> str:
    """A pattern for a text in which every number may be another."""
    pieces = _NUMBER.split(part)
    return r"([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?)".join(re.escape(piece) for piece in pieces)


def _near(wanted: str, found: str) -> bool:
    a, b = _value(wanted), _value(found)
    if "e" in wanted:
        return a == b or 0.1 * a < b < 10 * a
    return abs(a - b) <= max(0.03, 0.03 * abs(a))


def _value(number: str) -> float:
    return float(number.replace(",", ""))
