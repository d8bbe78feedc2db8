"""`README.md` of preserved runs: an entry for each, read by people and by `runs verify`.

The file is the only place where an entry is kept, so that people may write in it. An entry is a heading with the
run's name and a list of fields; `runs preserve` fills those that a machine knows, and those that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latentwire.errors import UserError
from latentwire.files import write_atomically

FILE = "README.md"
MARK = "<!-- Kept by `latentwire runs preserve`; `latentwire runs verify` finds what is empty. -->"
EMPTY = "(empty)"
WHY, WRONG, VERDICT, NEXT = (
    "Why it was run",
    "What went wrong",
    "How close to publishable",
    "What the next run must change",
)
COMMAND, STUDY, HARDWARE, SETTINGS, METRICS, NOTED, ARTIFACTS, LINEAGE = (
    "Exact command",
    "Study as read",
    "Hardware",
    "Settings",
    "Key metrics",
    "What the machine noted",
    "Artifacts to cite",
    "Lineage",
)
PERSONS = {WHY: "--why", WRONG: "--wrong", VERDICT: "--verdict", NEXT: "--next"}
"""The fields that only a person knows, with the option that fills each."""
FIELDS = (
    WHY,
    COMMAND,
    STUDY,
    HARDWARE,
    SETTINGS,
    METRICS,
    NOTED,
    WRONG,
    VERDICT,
    ARTIFACTS,
    LINEAGE,
    NEXT,
)
"""The fields of an entry, in order."""
_HEADING = re.compile(r"^## `([^`\n]+)`[^\n]*$", re.MULTILINE)
_FIELD = re.compile(r"^- \*\*([^*\n]+)\*\*:[ ]?", re.MULTILINE)
_TITLE = f"""# Preserved runs

{MARK}

Every folder here is a run as it was when it ended, with its checkpoints and with the runs that it started from.
`latentwire runs verify` checks every byte; `latentwire runs show` and `compare` take `--runs` with this folder.
"""


@dataclass
class Entry:
    """One preserved run.

    Attributes:
        run: its name, which is its folder below the manifest.
        fields: text by field; a field that nobody filled is absent or `(empty)`.
        rest: what people wrote below the fields.
    """

    run: str
    fields: dict[str, str] = field(default_factory=dict)
    rest: str = ""

    @property
    def empty(self) -> list[str]:
        """The fields that are still to be filled."""
        return [name for name in FIELDS if self.fields.get(name, "").strip() in ("", EMPTY)]

    def text(self) -> str:
        """As it stands in the file."""
        names = [*FIELDS, *(name for name in self.fields if name not in FIELDS)]
        lines = []
        for name in names:
            told = (self.fields.get(name) or "").strip() or EMPTY
            below = "\n  " if told.startswith("- ") else " "  # a list begins on a line of its own
            lines.append(f"- **{name}**:{below}{told}")
        rest = f"\n\n{self.rest.strip()}" if self.rest.strip() else ""
        return f"## `{self.run}`\n\n" + "\n".join(lines) + rest + "\n"


@dataclass
class Manifest:
    """All entries of a folder of preserved runs, and what stands before them."""

    head: str = _TITLE
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder; a new one where there is none.

        Raises:
            UserError: there is a `README.md` that is none.
        """
        path = folder / FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"preserve: {path} cannot be read, expected a manifest of preserved runs.") from error
        if MARK not in text:
            raise UserError(f"preserve: {path} is no manifest of preserved runs, expected another folder.")
        headings = list(_HEADING.finditer(text))
        head = text[: headings[0].start()] if headings else text
        ends = [*(heading.start() for heading in headings[1:]), len(text)]
        entries = {
            heading[1]: _entry(heading[1], text[heading.end() : end])
            for heading, end in zip(headings, ends, strict=True)
        }
        return cls(head, entries)

    def update(self, run: str, fields: Mapping[str, str | None]) -> Entry:
        """Fill fields of a run's entry, which is new or keeps what else it says; None leaves a field alone."""
        entry = self.entries.setdefault(run, Entry(run))
        entry.fields.update({name: text for name, text in fields.items() if text is not None})
        return entry

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        parts = [self.head.strip() + "\n", *(entry.text() for entry in self.entries.values())]
        write_atomically(folder / FILE, "\n".join(parts))


def _entry(run: str, text: str) -> Entry:
    marks = list(_FIELD.finditer(text))
    entry = Entry(run)
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        words = text[mark.end() : end]
        if number + 1 == len(marks):
            # Below the last field, after a blank line, people may write on.
            words, _, entry.rest = words.partition("\n\n")
        entry.fields[mark[1]] = words.strip("\n") if words.startswith("\n") else words.strip()
    if not marks:
        entry.rest = text.strip()
    return entry
