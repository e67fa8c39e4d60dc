"""Freed buffers stay with the process, as the system's own count of page faults shows."""

import platform
import subprocess
import sys

import pytest

ELEMENTS = 10 * 2**20  # 40 MiB: glibc maps buffers above 32 MiB anew each time
PAGES = 4 * ELEMENTS // 4096
FAULTS = f"""
import resource, sys
import torch
from quantable.base.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(30):  # until the freed pieces are large enough
    torch.ones({ELEMENTS})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones({ELEMENTS})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="mallopt is glibc's: on macOS the function does nothing, and there is nothing to see",
)
def test_a_buffer_is_faulted_in_once() -> None:
    assert faults("keep") < PAGES // 4
    assert faults("leave") > PAGES  # the setting is what makes the difference
