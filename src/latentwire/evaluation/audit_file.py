"""Audits as a file, which a report of a study shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentwire.errors import UserError
from latentwire.evaluation.audit import Audit
from latentwire.files import write_atomically

PATTERN = "audit*.json"
"""What these files are called where a report looks for them: in the study's folder."""


def write_audits(path: Path, model: str, adapter: str | None, audits: Sequence[Audit]) -> None:
    """Write what was found as JSON: the model, its adapter, and for each wire every field of its `Audit`.

    Args:
        path: The file, replaced whole.
        model: As the command was given it.
        adapter: The same of an adapter; None without one.
        audits: One for each wire.
    """
    found = {"model": model, "adapter": adapter, "audits": [asdict(each) for each in audits]}
    write_atomically(path, json.dumps(found, indent=1) + "\n")


def read_audits(path: Path) -> dict[str, Any]:
    """What `write_audits` wrote.

    Returns:
        `model`, `adapter`, and `audits`; each has `wire`, `problems`, `warnings`, `not_looked_at` and `layers`.

    Raises:
        UserError: The file is none of an audit.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for each in found["audits"]:
            _ = found["model"], each["wire"], *each["problems"], *each["warnings"], *each["not_looked_at"]
            _ = sum(layer["pairs"] for layer in each["layers"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: found no audit in it ({type(error).__name__}), expected what `latentwire audit --json` "
            "writes; write it again, or remove it."
        ) from error
    return found
