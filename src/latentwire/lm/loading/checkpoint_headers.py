"""What the headers of a checkpoint's safetensors files say, before a byte of its weights is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentwire.errors import UserError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SCALES = ("weight_scale_inv", "weight_scale", "scale")


def check(folder: Path, quantization: str | None) -> None:
    """Look at the files that Transformers reads, and only at those: others may hold another layout.

    Args:
        quantization: the `quant_method` of the configuration, None without one.

    Raises:
        UserError: a file that the index names is not there or is cut off, or a float8 tensor has no scale, without
            which its numbers are wrong by three orders of magnitude; names the tensor.
    """
    dtypes: dict[str, str] = {}
    for file in _files(folder):
        for name, entry in _header(file).items():
            dtypes[name] = entry["dtype"]
    for name, dtype in dtypes.items():
        if not dtype.startswith("F8_E4") and not dtype.startswith("F8_E5"):
            continue
        if quantization is None:
            raise UserError(
                f"weights: {name} in {folder} is float8 but config.json has no quantization_config, so its "
                "scale is not known; expected the checkpoint as it was published."
            )
        if quantization == "fp8" and name.endswith(".weight"):
            stem = name.removesuffix("weight")
            if not any(stem + scale in dtypes for scale in _SCALES):
                raise UserError(
                    f"weights: {name} in {folder} is float8, expected {stem}weight_scale_inv beside it."
                )


def _files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    if not (folder / _INDEX).exists():
        return []
    try:
        of: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
        files = {folder / shard: name for name, shard in of.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"weights: {folder / _INDEX} is no index of safetensors files.") from error
    for file, name in files.items():
        if not file.exists():
            raise UserError(f"weights: found no {file.name} in {folder}, expected it to hold {name}.")
    return sorted(files)


def _header(file: Path) -> dict[str, Any]:
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
