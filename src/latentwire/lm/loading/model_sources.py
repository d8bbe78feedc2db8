"""Which files a model's name stands for."""

from __future__ import annotations

from pathlib import Path

from latentwire import models
from latentwire.errors import UserError
from latentwire.lm.loading import adapter_files


def split_revision(spec: str) -> tuple[str, str | None]:
    """A hub id and the revision after its `@`; a local path is left whole.

    Example:
        >>> split_revision("Qwen/Qwen2.5-7B@main")
        ('Qwen/Qwen2.5-7B', 'main')
    """
    name, at, revision = spec.rpartition("@")
    if not at or not name or not revision or _looks_local(spec):
        return spec, None
    return name, revision


def locate(spec: str) -> str:
    """The local folder, `.gguf` file or hub id that `spec` names.

    Args:
        spec: `embedded:NAME`, a local folder, a `.gguf` file or a hub id.

    Raises:
        UserError: there is no such embedded model, or the path holds no model.

    Example:
        >>> locate("Qwen/Qwen2.5-7B")
        'Qwen/Qwen2.5-7B'
    """
    if spec.startswith("embedded:"):
        return str(models.folder(spec.removeprefix("embedded:")))
    path = Path(spec)
    if not _looks_local(spec):
        return spec
    if path.is_file() and path.suffix == ".gguf":
        return spec
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise UserError(
            f"model: found {found} at {path}, expected a folder with a Hugging Face model or a .gguf file."
        )
    if not (path / "config.json").exists():
        if (path / adapter_files.CONFIG).exists():
            base = adapter_files.base_model(path) or "MODEL"
            raise UserError(
                f"model: found only an adapter in {path}, expected a whole model; "
                f"write --model {base} --adapter {path}."
            )
        if ggufs := sorted(path.glob("*.gguf")):
            raise UserError(f"model: found no config.json in {path}, expected the .gguf file itself: {ggufs[0]}.")
        raise UserError(f"model: found no config.json in {path}, expected a folder with a Hugging Face model.")
    if (path / adapter_files.CONFIG).exists():
        raise adapter_beside(spec)
    return spec


def adapter_beside(spec: str) -> UserError:
    """The error for a model folder that also holds an adapter, which Transformers would put on unasked."""
    return UserError(
        f"model: found an adapter beside the weights of {spec}, and either may be meant; expected one of the two. "
        f"Move {adapter_files.CONFIG} and {adapter_files.WEIGHTS} into a folder of their own, and name it with "
        "--adapter to read with it."
    )


def _looks_local(spec: str) -> bool:
    return Path(spec).exists() or spec.startswith((".", "/", "~")) or spec.count("/") > 1
