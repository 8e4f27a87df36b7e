"""Which failures are those of standard output."""

from __future__ import annotations

import errno
import os
import resource
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
        ("/dev/null", True, errno.EFBIG, "other: of another file"),
        ("/dev/full", True, errno.ENOENT, "other: of another file"),
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


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_file_that_may_grow_no_further_is_told_of_in_a_line(tmp_path, unbuffered):
    """By `ulimit -f` or a quota, in the middle of what is printed."""
    program = PROGRAM.format(other=False, number=0).replace('"a line"', '"a line" * 10_000')
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
            timeout=60,
            check=True,
        )

    assert done.stderr.decode() == "output: cannot write the output (File too large)\n"


CLOSED = """
import os, sys
from softkin.console import OutputError, flushed
try:
    with flushed():
        with open({file!r}, "w") as file:
            print("of a file", file=file, flush=True)
            os.write(2, b"of native code\\n")
            print("an error", file=sys.stderr)
            {printed}
except OutputError as e:
    print(e.reason, file=sys.stderr)
    sys.exit(1)
"""


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("printed", ["pass", 'print("a line")'])
def test_what_is_printed_to_a_closed_stream_goes_nowhere_else(tmp_path, closed, printed):
    """To no other stream, and to no file that happens to get its number; an output that is lost is told."""

    def close():
        for fd in closed:
            os.close(fd)

    done = subprocess.run(
        [sys.executable, "-c", CLOSED.format(file=str(tmp_path / "file"), printed=printed)],
        capture_output=True,
        preexec_fn=close,
        timeout=60,
        check=False,
    )

    lost = 1 in closed and printed != "pass"
    assert done.returncode == int(lost)
    assert done.stdout.decode() == ("a line\n" if printed != "pass" and not lost else "")
    told = "cannot write the output (Bad file descriptor)\n" if lost else ""
    assert done.stderr.decode() == ("" if 2 in closed else f"of native code\nan error\n{told}")
    assert (tmp_path / "file").read_text() == "of a file\n"


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
