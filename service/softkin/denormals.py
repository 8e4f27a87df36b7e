"""Numbers next to zero count as zero while onnxruntime computes.

Masses of far bank rows are below 1e-38, and x86 cores take a hundred times as long for such denormal numbers as for
others. No class mass depends on them: most of their digits are lost, and the nearest row of every tile counts as 1.
onnxruntime can set its own threads so, but not the caller's, which computes its share too. That thread is set back
after each run: nobody else's arithmetic must change.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

FLUSH_TO_ZERO, DENORMALS_ARE_ZERO = 1 << 15, 1 << 6
"""Bits of the control register of SSE and AVX, MXCSR: for results, and for what is read."""


class _Environment(ctypes.Structure):
    """`fenv_t` of the C libraries for x86-64 Linux."""

    _fields_ = (("x87", ctypes.c_uint8 * 28), ("mxcsr", ctypes.c_uint32))


def _c_library() -> ctypes.PyDLL | None:
    """The C library that reads and sets the calling thread's floating-point environment; None on other systems."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        library = ctypes.PyDLL("libm.so.6")  # holds the GIL: to let go of it would cost more than the call
    except OSError:
        return None
    for function in (library.fegetenv, library.fesetenv):
        function.argtypes, function.restype = [ctypes.POINTER(_Environment)], ctypes.c_int
    return library


_LIBRARY = _c_library()


def can_flush() -> bool:
    """Whether `denormals_as_zero` has an effect on this system."""
    return _LIBRARY is not None


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Let the calling thread read and write denormal numbers as zero meanwhile; costs half a microsecond."""
    if _LIBRARY is None:
        yield
        return
    before = _Environment()
    _LIBRARY.fegetenv(before)
    within = _Environment.from_buffer_copy(before)
    within.mxcsr |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO
    try:
        _LIBRARY.fesetenv(within)
        yield
    finally:
        _LIBRARY.fesetenv(before)
