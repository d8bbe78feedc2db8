"""The heap of a process that computes on a CPU."""

from __future__ import annotations

import os
from typing import Any

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
KEPT = 2**31 - 1
"""Bytes of freed memory at the heap's end that stay with the process."""
LARGE = 2**25
"""Tensors of more bytes get pages of their own; glibc allows no larger limit."""


def keep_freed_memory() -> bool:
    """Let the C library keep memory that is freed, for the next tensors.

    By default it gives it back to the system, which fills every page with zeros before it gives it again. A layer
    that frees and allocates tensors of some megabytes spends a tenth of its time there. The peak stays what it is.
    Nothing changes under another C library, or where the environment sets glibc's own variables (`MALLOC_...`).

    Returns:
        Whether the C library took the settings.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    import ctypes  # so that help does not wait for it

    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    settings = ((_TRIM_THRESHOLD, KEPT), (_TOP_PAD, 2**26), (_MMAP_THRESHOLD, LARGE))
    return all(mallopt(name, value) == 1 for name, value in settings)
