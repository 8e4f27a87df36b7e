"""Standard output of a command line: what stays in its buffer is written, or what prevents that is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def flushed() -> Iterator[None]:
    """Write what is left in the buffer at the end, where a failure can still be told.

    Raises:
        OSError: the reader has left (EPIPE), or the disk is full (ENOSPC); what is left is dropped, so that it cannot
            fail again at exit.
    """
    try:
        yield
    finally:
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise
