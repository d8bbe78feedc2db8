"""The metadata of a `.gguf` file, parsed once."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from latentwire.errors import UserError

_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct` formats by GGUF's number of a value type."""
_STRING, _ARRAY = 8, 9
_LARGE = 1024
"""Arrays of this length or more belong to a tokenizer; of the tokens a configuration takes their number."""


def require() -> None:
    """Raise a `UserError` unless the package that reads `.gguf` files is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "model: found a .gguf file, and the package that reads it is not installed; "
            "expected it: pip install 'latentwire[gguf]'."
        )


@contextmanager
def parsed_once(file: Path) -> Iterator[Any]:
    """Inside the block, whoever opens `file` with `gguf.GGUFReader` gets one and the same reader.

    Transformers opens a file for its configuration and again for its weights, and the library's own reader takes
    up to half a minute for the arrays of a large vocabulary; this one takes about a second. Transformers also
    makes the table of tensor names anew for each of a model's hundreds of modules; here it is made once.

    Args:
        file: a `.gguf` file.

    Yields:
        The reader. `metadata(reader, key)` gives the values in it.

    Raises:
        UserError: the file is not a GGUF file, or is cut off.
    """
    import gguf

    original: Any = gguf.GGUFReader
    if getattr(original, "file", None) == file:  # a block around this one has parsed it
        yield original.reader
        return
    try:
        reader = _reader_class(original)(file)
    except Exception as error:  # whatever stands in the way, this is no GGUF file, or not all of one
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model: {file} cannot be loaded: {told.rstrip('.')}; expected a whole .gguf file."
        ) from error
    gguf.GGUFReader = _Opened(file, reader, original)  # type: ignore[assignment,misc]
    names = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(names)
    try:
        yield reader
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]
        gguf.get_tensor_name_map = names


class _Opened:
    """Stands in for `gguf.GGUFReader`: one file has been parsed already, others are opened as ever."""

    def __init__(self, file: Path, reader: Any, original: Any) -> None:
        self.file, self.reader, self._original = file, reader, original

    def __call__(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        return self.reader if Path(path) == self.file else self._original(path, *args, **kwargs)


def metadata(reader: Any, key: str, default: Any = None) -> Any:
    """The value of a key, `default` where the file has none."""
    if key in reader.arrays:
        return reader.arrays[key]
    return reader.fields[key].contents() if key in reader.fields else default


def _reader_class(base: Any) -> Any:
    """A `GGUFReader` that reads an array in one loop, and keeps it apart in `arrays` as plain Python values."""
    import numpy as np
    from gguf import GGUFValueType

    kinds = {int(kind): kind for kind in GGUFValueType}

    class Reader(base):  # type: ignore[misc]
        def __init__(self, path: Path) -> None:
            self.arrays: dict[str, list[Any]] = {}
            self._last: list[Any] | None = None
            super().__init__(path)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            self._last = None
            if raw_type != _ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            item, count = struct.unpack_from("<IQ", self.data, orig_offs)
            start = orig_offs + 12
            if item == _STRING:
                values, end = _strings(self.data, start, count)
            elif item in _FORMATS:
                width = struct.calcsize(_FORMATS[item])
                end = start + width * count
                if end > len(self.data):
                    raise ValueError("the file ends within an array of its metadata")
                values = list(struct.unpack_from(f"<{count}{_FORMATS[item]}", self.data, start))
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            if count < _LARGE:  # small arrays belong to the configuration: whoever asks gets them as ever
                result = super()._get_field_parts(orig_offs, raw_type)
                self._last = values
                return result
            self._last = values
            empty = np.zeros(0 if item == _STRING else 1, dtype=np.uint8)
            types = [kinds[_ARRAY], kinds[item]]
            return end - orig_offs, [empty], [0] * count, types

        def _push_field(self, field: Any, skip_sum: bool = False) -> Any:
            if self._last is not None:
                self.arrays[field.name] = self._last
                self._last = None
                if len(field.data) >= _LARGE and field.name != "tokenizer.ggml.tokens":
                    field = field._replace(data=field.data[:1])  # nobody asks Transformers for it
            return super()._push_field(field, skip_sum)

    return Reader


def _strings(data: Any, start: int, count: int) -> tuple[list[str], int]:
    """`count` strings of a file from an offset on, and the offset after them."""
    view, size, values = memoryview(data), len(data), []
    at = start
    for _ in range(count):
        if at + 8 > size:
            raise ValueError("the file ends within an array of its metadata")
        (length,) = struct.unpack_from("<Q", view, at)
        if at + 8 + length > size:
            raise ValueError("the file ends within an array of its metadata")
        values.append(str(view[at + 8 : at + 8 + length], "utf-8", "replace"))
        at += 8 + length
    return values, at
