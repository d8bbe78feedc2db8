"""`run.json` with a hash of itself, so that one changed byte of it is found.

Its last line, `record_sha256`, is the SHA-256 of the whole file with zeros in the place of the hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

_SEAL = re.compile(r'"record_sha256": "([0-9a-f]{64})"\n}\n\Z')
_ZEROS = "0" * 64
_SINCE = '"study_file": '
"""A key that every sealed record has, and no older one."""


def sealed(record: Mapping[str, Any]) -> str:
    """The text of a record, with its seal as its last line."""
    text = json.dumps({**record, "record_sha256": _ZEROS}, indent=1, ensure_ascii=False) + "\n"
    return _with(text, hashlib.sha256(text.encode()).hexdigest())


def is_whole(content: bytes) -> bool | None:
    """Whether a record is byte for byte what was written; None for one of a version that wrote no seal."""
    text = content.decode("utf-8", errors="replace")
    seal = _SEAL.search(text)
    if seal is None:
        return False if _SINCE in text else None
    return hashlib.sha256(_with(text, _ZEROS).encode()).hexdigest() == seal[1]


def _with(text: str, sha256: str) -> str:
    return _SEAL.sub(f'"record_sha256": "{sha256}"\n}}\n', text)
