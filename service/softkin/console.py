"""Standard output of a command line: it takes any text, and what prevents it from being written is told."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


WRITE_ERRORS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the system says where the reader has left, and where a file can grow no further."""


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
        OutputError: the reader has left, the disk is full, or there is no standard output; what is left is dropped, so
            that it cannot fail again at exit. Errors of other pipes and files come out as they are.
    """
    _open_missing()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # class names, paths and bars, on a terminal that is not UTF-8
    try:
        yield
    except OSError as e:
        if e.errno in WRITE_ERRORS and not _takes_more():
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


def lost_directory(error: FileNotFoundError) -> str:
    """What to say where the current directory has been removed or replaced, so that no relative path leads anywhere.

    Raises:
        FileNotFoundError: `error`, as it is, where the directory is there.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the current directory has been removed; change to one that is there (cd)"
    raise error


def _open_missing() -> None:
    """Put something in the place of standard streams that are closed, or the next file to be opened would be there.

    Python has no stream for those either: what is printed for an error would go to standard output. As with coreutils,
    what is written to the output fails then, and of what is written to the errors nothing can be told.
    """
    for fd, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # as the lowest number that is free
            if fd == STDOUT:
                sys.stdout = open(fd, "w", closefd=False)  # noqa: SIM115
            if fd == STDERR:
                sys.stderr = open(fd, "w", closefd=False)  # noqa: SIM115


def _takes_more() -> bool:
    """Whether standard output is well, so that another pipe or file failed: only one more try can tell."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        return False
    return True
