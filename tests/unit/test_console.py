"""Which failures are those of standard output."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

PROGRAM = """
import errno, os, sys
from softkin.console import OutputError, flushed
try:
    with flushed():
        if {other}:
            raise OSError({number}, "of another file")
        print("a line")
except OutputError as e:
    print("output:", e.reason, file=sys.stderr)
except OSError as e:
    print("other:", e.strerror, file=sys.stderr)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize(
    ("place", "other", "number", "told"),
    [
        ("/dev/full", False, 0, "output: cannot write the output (No space left on device)"),
        ("/dev/null", True, errno.ENOSPC, "other: of another file"),
        ("/dev/null", True, errno.EPIPE, "other: of another file"),
    ],
)
def test_only_its_own_failures_are_told_as_such(place, other, number, told, unbuffered):
    """A disk that is full elsewhere, or a child process that died, must not end a command without a word."""
    with open(place, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(other=other, number=number)],
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
            check=True,
        )

    assert done.stderr.decode().strip() == told


SHOWN = r"""
from softkin.console import flushed
with flushed():
    print("caf\xe9 \udce9")
"""


def test_what_cannot_be_shown_is_replaced():
    """Names of classes and files, at the end of hours of work, where a terminal lacks a letter, or Unicode does."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    done = subprocess.run([sys.executable, "-c", SHOWN], capture_output=True, text=True, env=environment, timeout=60)

    assert (done.stdout, done.stderr) == ("caf? ?\n", "")
