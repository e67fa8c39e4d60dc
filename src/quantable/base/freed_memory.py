"""How the C library's allocator treats the large buffers of a training step."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    By default it returns large buffers to the system, and every step pays for the page faults of
    its activations again: about 4 % of a float step, more of a quantized one. The peak is the same.
    Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
