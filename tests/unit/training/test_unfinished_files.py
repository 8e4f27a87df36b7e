"""Files whose making was cut short: what a killed run had begun goes with the next that writes, what lives stays."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from small_runs import run
from softkin import unfinished_files
from softkin.errors import DataError
from softkin.unfinished_files import remove_unfinished, written_whole
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.history import HISTORY
from softkin_training.row_cache import cached_rows
from softkin_training.stored_rows import write_rows
from softkin_training.train import CHECKPOINT

pytestmark = pytest.mark.training

DAY = 24 * 3600
KEY = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Where rows are kept."""
    (tmp_path / "softkin").mkdir()
    return tmp_path / "softkin"


def write(name, rows=lambda: [np.array([[1.0]])]):
    """Make rows of this name in the cache."""
    return cached_rows([], {"name": name}, rows)


def names(folder):
    """Of all files, hidden ones too."""
    return sorted(file.name for file in folder.iterdir())


def leftover(folder, name, *, age_seconds=0):
    """A beginning that nobody holds."""
    path = folder / name
    path.write_bytes(b"rows")
    os.utime(path, (time.time() - age_seconds,) * 2)
    return path


def killed_run(folder):
    """A process that is killed while it makes rows, and the name of what it leaves."""
    code = (
        "import pathlib, sys, numpy, softkin_training.stored_rows as s\n"
        "def rows():\n"
        "    yield numpy.array([[1.0]])\n"
        "    print(flush=True), sys.stdin.read()\n"
        f"s.write_rows(pathlib.Path(sys.argv[1]) / '{KEY}.arrow', rows())\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        (begun,) = names(folder)
        write("in the meantime")
        assert begun in names(folder), "it was being written"
        process.send_signal(signal.SIGKILL)
    return begun


def like(begun, name):
    """What the same writer would have called the beginning of another file."""
    return begun.replace(f"{KEY}.arrow", name)


def test_what_a_killed_run_had_begun_is_removed_by_the_next_that_writes(folder):
    """Not before it is dead, and not by one that finds its rows made."""
    begun = killed_run(folder)
    kept = names(folder)
    assert begun in kept

    write("in the meantime")
    assert names(folder) == kept
    write("later")

    assert begun not in names(folder)
    assert len(names(folder)) == 2
    assert all(name.endswith(".arrow") for name in names(folder))


def test_runs_that_write_at_once_leave_each_other_alone(folder):
    """Also two of one process, and of the same rows: whoever ends last has the last word."""

    def rows():
        yield np.array([[1.0]])
        write("other")
        write("same", lambda: [np.array([[3.0]])])
        yield np.array([[2.0]])

    found = write("same", rows)

    assert found[np.arange(2)].tolist() == [[1.0], [2.0]]
    assert len(names(folder)) == 2


@pytest.mark.parametrize(
    "name",
    [f".{KEY}.arrow.{os.getpid()}", f".{KEY}.arrow.elsewhere.ab12"],
    ids=["of a version that took no locks, whose number is another's by now", "of another host"],
)
@pytest.mark.parametrize(("age_seconds", "stays"), [(DAY - 60, True), (DAY + 60, False)])
def test_where_locks_tell_nothing_a_day_without_writing_does(folder, name, age_seconds, stays):
    """No run takes a day over 256 rows."""
    path = leftover(folder, name, age_seconds=age_seconds)

    write("later")

    assert path.exists() == stays


@pytest.mark.parametrize(
    "name", [f"{KEY}.arrow", f"{KEY}.arrow.bak", ".cached.arrow.1", f".{KEY}.arrow", ".gitignore", f".{KEY}.arrow."]
)
def test_files_of_others_stay(folder, name):
    """However old they are."""
    path = leftover(folder, name, age_seconds=99 * DAY)

    write("later")

    assert path.exists()


def test_what_cannot_be_removed_stands_in_nobodys_way(folder, tmp_path):
    """A folder, or a link, of such a name."""
    (folder / f".{KEY}.arrow.1").mkdir()
    kept = leftover(tmp_path, "kept", age_seconds=2 * DAY)
    (folder / f".{KEY}.arrow.2").symlink_to(kept)

    write("later")

    assert kept.exists()
    assert len(names(folder)) == 3


def test_without_locks_rows_are_written_and_nothing_is_removed(folder, monkeypatch):
    """As on some network disks: nothing tells there whether a writer lives."""

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path = leftover(folder, f".{KEY}.arrow.1", age_seconds=2 * DAY)

    assert write("later")[np.array([0])].tolist() == [[1.0]]
    assert path.exists()


def test_a_file_taken_for_abandoned_before_it_was_locked_is_begun_again(folder, monkeypatch):
    """Between making a file and locking it there is a moment."""
    flock, taken = fcntl.flock, []

    def sweep_first(fd, operation):
        if not taken:
            taken.extend(names(folder))
            (folder / taken[0]).unlink()
        flock(fd, operation)

    monkeypatch.setattr(unfinished_files.fcntl, "flock", sweep_first)

    def rows():
        remove_unfinished(folder, re.compile(r"rows\.arrow"))  # another run, for which it is locked now
        yield np.array([[4.0]])

    found = write_rows(folder / "rows.arrow", rows())

    assert len(taken) == 1
    assert found[np.array([0])].tolist() == [[4.0]]
    assert names(folder) == ["rows.arrow"]


def test_rows_that_cannot_be_made_leave_nothing(folder):
    """Neither begun nor whole; and the file is one that all may read whom the umask lets."""

    def fails():
        yield np.array([[1.0]])
        raise DataError("row 1 is none")

    with pytest.raises(DataError, match=r"^row 1 is none$"):
        write("bad", fails)
    assert names(folder) == []

    before = os.umask(0o027)
    try:
        write("good")
    finally:
        os.umask(before)
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_run_that_goes_on_removes_what_was_begun_of_its_files(folder, tmp_path):
    """Of every file that training writes again; what others keep in the folder stays."""
    begun, out = killed_run(folder), tmp_path / "run"
    out.mkdir()
    for name in (CHECKPOINT, HISTORY, ".writable"):
        leftover(out, like(begun, name))
    kept = leftover(out, like(begun, "notes.txt"))

    run(load_dataset(load_recipe("digits")), out, "training.epochs=1")

    assert [path for path in out.iterdir() if path.name.startswith(".")] == [kept]
    assert {CHECKPOINT, HISTORY} <= set(names(out))


def test_no_file_stays_open(folder, monkeypatch):
    """Nor locked with it: of those looked at, of those begun twice, and of those written."""
    flock, removed = fcntl.flock, []
    leftover(folder, ".rows.arrow.elsewhere.ab12")

    def sweep_first(fd, operation):
        begun = os.readlink(f"/proc/self/fd/{fd}")
        if not removed and "elsewhere" not in begun:
            removed.append(begun)
            os.unlink(begun)
        flock(fd, operation)

    monkeypatch.setattr(unfinished_files.fcntl, "flock", sweep_first)
    with written_whole(folder / "rows.arrow") as temporary:
        temporary.write_text("rows")

    assert len(removed) == 1
    descriptors = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert [name for entry in descriptors if (name := os.path.realpath(entry)).startswith(str(folder))] == []
