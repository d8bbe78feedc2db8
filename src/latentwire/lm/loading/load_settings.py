"""`Loading`: how a model is loaded, in the same words in Python, studies, the command line and lm-eval."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from latentwire.errors import UserError, one_of

DeviceMap = str | dict[str, int | str]
Dtype = Literal["float32", "bfloat16", "float16"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loading(BaseModel):
    """How a model is loaded: its precision, where its modules go, and which version of it.

    Every field may be left out. A study writes them under `loading: {MODEL: {...}}`.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`; left out it is float32 on a CPU and bfloat16 on an accelerator.
        device_map: where each module goes, as Transformers takes it: `auto`, or a device for each module name.
        bits: 4 rounds the weights to NF4 and 8 to int8 as they are loaded, by bitsandbytes on a GPU. Such a model
            can read, but its weights cannot be trained.
        revision: a branch, tag or commit of a model on the hub. `MODEL@REVISION` says the same.
        max_memory: the most memory to use, such as `40GiB` for each accelerator, or by device,
            `{0: "40GiB", "cpu": "100GiB"}`. Without a `device_map` it implies `auto`.
        trust_remote_code: run Python code that comes with the model. Without it such a model is refused.

    Example:
        >>> LM.load("meta-llama/Llama-3.1-8B-Instruct", Loading(dtype="bfloat16", max_memory={0: "40GiB"}))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Dtype | None = None
    device_map: DeviceMap | None = None
    bits: Literal[4, 8] | None = None
    revision: str | None = None
    max_memory: str | dict[int | str, int | str] | None = None
    trust_remote_code: bool = False

    @field_validator("max_memory", mode="after")
    @classmethod
    def _sizes(cls, value: str | dict[int | str, int | str] | None) -> str | dict[int | str, int | str] | None:
        from accelerate.utils import convert_file_size_to_int

        for size in value.values() if isinstance(value, dict) else [value]:
            try:
                convert_file_size_to_int(size or 0)
            except ValueError as error:
                raise ValueError(f"found {size!r}, expected a size such as 40GiB or 500MB") from error
        return value

    @classmethod
    def parse(
        cls,
        *,
        dtype: str | None = None,
        device_map: str | DeviceMap | None = None,
        bits: int | None = None,
        revision: str | None = None,
        max_memory: str | dict[int | str, int | str] | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """The settings that options on a command line spell out.

        Args:
            dtype: `float32`, `bfloat16` or `float16`.
            device_map: `auto` or another strategy of Accelerate, or a JSON mapping of module names to devices.
            bits: 4 or 8.
            revision: a branch, tag or commit.
            max_memory: one size, or `DEVICE=SIZE` joined by `+`, such as `0=40GiB+cpu=100GiB`.
            trust_remote_code: whether code that comes with the model may run.

        Raises:
            UserError: a value is none of these; the sentence names the option.

        Example:
            >>> Loading.parse(dtype="bfloat16", max_memory="0=40GiB+cpu=100GiB").max_memory
            {0: '40GiB', 'cpu': '100GiB'}
        """
        if dtype is not None and str(dtype) not in _DTYPES:
            raise UserError(f"dtype: found {dtype!r}, expected {one_of(str(dtype), _DTYPES)}.")
        if bits is not None and bits not in (4, 8):
            raise UserError(f"bits: found {bits!r}, expected 4 or 8.")
        if isinstance(device_map, str) and device_map.lstrip().startswith("{"):
            try:
                device_map = json.loads(device_map)
            except ValueError as error:
                raise UserError(
                    f"device_map: found {device_map!r}, which is not JSON; "
                    'expected auto or a mapping such as {"": 0}.'
                ) from error
        if isinstance(max_memory, str) and "=" in max_memory:
            max_memory = dict(_device_and_size(part) for part in max_memory.split("+"))
        fields: dict[str, Any] = {
            "dtype": dtype,
            "device_map": device_map,
            "bits": bits,
            "revision": None if revision is None else str(revision),
            "max_memory": max_memory,
            "trust_remote_code": trust_remote_code,
        }
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = first["msg"].removeprefix("Value error, ")
            found = message if "found" in message else f"found {first['input']!r}; {message}"
            raise UserError(f"{first['loc'][0]}: {found}.") from error

    def with_dtype(self, dtype: torch.dtype | None) -> Self:
        """These settings with `dtype` where they name none."""
        if dtype is None or self.dtype is not None:
            return self
        return self.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})

    def without_revision(self) -> Self:
        """These settings for another model, whose revisions have other names."""
        return self.model_copy(update={"revision": None})

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The dtype as PyTorch has it, None where none is named."""
        return None if self.dtype is None else _DTYPES[self.dtype]

    def memory_by_device(self) -> dict[int | str, int | str] | None:
        """`max_memory` by device, as Accelerate takes it; one size counts for each accelerator.

        Raises:
            UserError: one size is given on a machine without an accelerator.
        """
        if not isinstance(self.max_memory, str):
            return self.max_memory
        if not torch.cuda.is_available():
            raise UserError(
                f"max_memory: found {self.max_memory} for each accelerator, and this machine has none; "
                f"expected a size for the CPU: cpu={self.max_memory}."
            )
        return dict.fromkeys(range(torch.cuda.device_count()), self.max_memory)


def _device_and_size(part: str) -> tuple[int | str, str]:
    device, equals, size = part.strip().partition("=")
    if not equals or not device or not size:
        raise UserError(f"max_memory: found {part!r}, expected DEVICE=SIZE such as 0=40GiB, joined by +.")
    return (int(device) if device.isdigit() else device), size
