"""Checks of a checkpoint's safetensors headers, before a byte of its weights is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentwire.errors import UserError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SCALES = ("weight_scale_inv", "weight_scale", "scale")
_FLOATS = ("F64", "F32", "F16", "BF16")


def check(folder: Path, quantization: str | None) -> None:
    """Check the files that Transformers reads, and only those: others may hold another layout.

    Args:
        folder: of the model.
        quantization: the `quant_method` of the configuration, None without one.

    Raises:
        UserError: a file of the index is missing, cut off or outside of the folder; a weight holds integers; or a
            float8 tensor has no scale, without which its numbers are a thousand times wrong.
    """
    dtypes = {name: entry["dtype"] for file in _files(folder) for name, entry in _header(file).items()}
    for name, dtype in dtypes.items():
        if dtype.startswith(("F8_E4", "F8_E5")):
            _check_scale(name, dtypes, folder, quantization)
        elif quantization is None and name.endswith(".weight") and dtype not in _FLOATS:
            raise UserError(
                f"weights: {name} in {folder} holds {dtype} values, expected floating-point numbers "
                f"({', '.join(_FLOATS)}); casting them would read other numbers."
            )


def _check_scale(name: str, dtypes: dict[str, str], folder: Path, quantization: str | None) -> None:
    if quantization is None:
        raise UserError(
            f"weights: {name} in {folder} is float8 but config.json has no quantization_config, so its "
            "scale is not known; expected the checkpoint as it was published."
        )
    if quantization == "fp8" and name.endswith(".weight"):
        stem = name.removesuffix("weight")
        if not any(stem + scale in dtypes for scale in _SCALES):
            raise UserError(f"weights: {name} in {folder} is float8, expected {stem}weight_scale_inv beside it.")


def _files(folder: Path) -> list[Path]:
    """The safetensors files that Transformers reads from a folder."""
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    if not (folder / _INDEX).exists():
        return []
    try:
        shards: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
        first = {shard: name for name, shard in reversed(shards.items())}
        outside = [shard for shard in first if Path(shard).name != shard]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"weights: {folder / _INDEX} is no index of safetensors files, expected a weight_map of tensor names."
        ) from error
    if outside:
        raise UserError(
            f"weights: {folder / _INDEX} names {outside[0]!r}, expected the name of a file in that folder."
        )
    for shard, name in first.items():
        if not (folder / shard).exists():
            raise UserError(f"weights: found no {shard} in {folder}, expected it to hold {name}.")
    return sorted(folder / shard for shard in first)


def _header(file: Path) -> dict[str, Any]:
    """The entries of a file by tensor name, once every one of them lies within the file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if 8 + length > size:
            raise UserError(f"weights: {file} cannot be loaded: found {size:,} bytes, cut off within its header.")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            ends = {name: 8 + length + int(entry["data_offsets"][1]) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"weights: {file} cannot be loaded: its header is not that of safetensors.") from error
    if cut := [name for name, end in ends.items() if end > size]:
        name = min(cut, key=ends.__getitem__)
        raise UserError(
            f"weights: {name} in {file} is cut off: found {size:,} bytes, expected {max(ends.values()):,}."
        )
    return header
