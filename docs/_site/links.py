"""Links between the repository's documents, as the site needs them."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MOVED = {
    ROOT / "README.md": DOCS / "index.md",
    ROOT / "CONTRIBUTING.md": DOCS / "project" / "contributing.md",
    ROOT / "CHANGELOG.md": DOCS / "project" / "changelog.md",
    ROOT / "SECURITY.md": DOCS / "project" / "security.md",
    ROOT / "examples": DOCS / "reference" / "examples.md",
}
"""Where the site shows what is elsewhere in the repository."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def relink(text: str, origin: Path, shown: Path) -> str:
    """A document with the links that the site needs.

    Args:
        text: The document, in Markdown.
        origin: The file that it is in, from which its links start.
        shown: The page that shows it.

    Returns:
        The text. A link to a file that the site does not hold becomes plain text.
    """

    def changed(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = (origin.parent / target).resolve()
        if path.parent == ROOT / "examples":
            path, anchor = MOVED[ROOT / "examples"], f"#{path.name.replace('.', '')}"
        path = MOVED.get(path, path)
        if not path.is_relative_to(DOCS) or path.is_dir():
            return label
        return f"[{label}]({os.path.relpath(path, shown.parent)}{anchor})"

    return _LINK.sub(changed, text)
