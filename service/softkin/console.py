"""Standard output of a command line: it takes any text, and what prevents it from being written is told."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class OutputError(Exception):
    """Standard output cannot be written.

    Attributes:
        reason: in a line; empty where its reader has left, who has all that he wants.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = "" if isinstance(error, BrokenPipeError) else f"cannot write the output ({error.strerror})"


@contextmanager
def flushed() -> Iterator[None]:
    """Write what is left in the buffer at the end, where a failure can still be told; `?` for what cannot be shown.

    Raises:
        OutputError: the reader has left, or the disk is full; what is left is dropped, so that it cannot fail again at
            exit. Errors of other pipes and files come out as they are.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # class names, paths and bars, on a terminal that is not UTF-8
    try:
        yield
    except OSError as e:
        if e.errno in (errno.EPIPE, errno.ENOSPC) and not _takes_more():
            raise OutputError(e) from e
        raise
    finally:
        if sys.stdout is not None:
            try:
                sys.stdout.flush()
            except OSError as e:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)
                raise OutputError(e) from e


def _takes_more() -> bool:
    """Whether standard output is well, so that another pipe or file failed: only one more try can tell."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return False
    return True
