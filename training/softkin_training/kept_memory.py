"""Memory that a step has freed stays for the next one, on CPUs.

torch takes the tensors of a step from the C library, and glibc gives those of some megabytes back to the system as soon
as they are free: every step then waits for the same pages again, zeroed one by one. Kept, a training step of the CNN of
the recipes takes a fifth less time, and one of 512 images a third (docs/decisions/0029).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from softkin.freed_memory import return_freed_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""What glibc calls them in malloc.h."""
KEPT_BYTES = 2**31 - 1
"""What may lie free at the end of the heap; mallopt takes no more."""
AFTERWARDS = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""mallopt(3): the first's default, and where the other two stand in a process that has freed large blocks: glibc moves
them by itself until they were set once."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, glibc keeps what is freed for what comes next; at the end what is free goes to the system.

    For the whole process. With another C library nothing changes.
    """
    libc = ctypes.CDLL(None) if sys.platform != "win32" else None  # this program with all its libraries
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)  # a block of its own is always given back; without any the heap serves all sizes
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        for option, value in AFTERWARDS.items():
            mallopt(option, value)
        return_freed_memory()
