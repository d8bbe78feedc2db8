"""SHA-256 hashes: the identity of a stage, and the content of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentwire.errors import UserError

# The files that loading a model reads; Mistral's repositories also hold the weights in another layout.
_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "tokenizer*")
_NOT_READ = ("consolidated*", "recipe.json", "card.json", "card.md", "README*")


def identity(parts: Mapping[str, Any]) -> str:
    """SHA-256 of `parts` as JSON, keys in order: equal parts, equal identity."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    # The hub's cache links to blobs named by this very hash, so that gigabytes need not be read again.
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob := path.resolve().name):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_folder(spec: str, revision: str | None = None) -> Path:
    """Where a model is: of `embedded:NAME`, of a folder or `.gguf` file, or of a hub id after its download.

    Raises:
        UserError: Nothing is found there.
    """
    # Imported here because reading a run's record needs neither.
    from huggingface_hub import snapshot_download

    from latentwire.lm.loading.model_sources import locate, split_revision

    name, at = split_revision(spec)
    folder = Path(locate(name))
    if folder.exists():
        return folder
    try:
        return Path(
            snapshot_download(
                name,
                revision=at or revision,
                allow_patterns=list(_MODEL_FILES),
                ignore_patterns=list(_NOT_READ),
            )
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model: {spec} is neither a folder nor available from the hub: {reason}") from error


def model_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that loading a model reads, by name; `folder` may be a `.gguf` file.

    Raises:
        UserError: There are no weights.
    """
    if folder.is_file():
        return {folder.name: file_sha256(folder)}
    paths = {path for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    files = {path.name for path in paths if path.is_file() and not any(map(path.match, _NOT_READ))}
    if not any(name.endswith(".safetensors") for name in files):
        raise UserError(f"model: found no .safetensors file in {folder}, expected a Hugging Face model's weights.")
    return {name: file_sha256(folder / name) for name in sorted(files)}
