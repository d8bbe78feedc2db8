"""Memory that is freed is there for the next tensors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from latentwire.heap import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "kept" else False
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks = [bytearray(3 * 2**23) for _ in range(4)]
    del blocks
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[bool, int]:
    words = [sys.executable, "-c", CODE, how]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(words, env=clean | environment, check=True, capture_output=True, text=True)
    taken, count = done.stdout.split()
    return taken == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_asked_for_again():
    taken, kept = faults("kept")
    assert taken
    assert kept < faults("given back")[1] / 5


def test_what_the_environment_says_of_the_heap_stays():
    assert not faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0]
