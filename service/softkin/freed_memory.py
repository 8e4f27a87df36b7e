"""Memory that was freed goes back to the system, where the C library would keep it."""

from __future__ import annotations

import ctypes
import sys

_LIBC = ctypes.CDLL(None) if sys.platform != "win32" else None  # this program with all its libraries
_TRIM = getattr(_LIBC, "malloc_trim", None)


def return_freed_memory() -> None:
    """Return what lies free in glibc's heaps; with another C library nothing happens.

    glibc takes blocks of up to 32 MB from heaps once a program has freed such blocks, and of a heap it returns the end
    alone: a bank that is made of many such blocks would stay resident after it has gone.
    """
    if _TRIM is not None:
        _TRIM(0)
