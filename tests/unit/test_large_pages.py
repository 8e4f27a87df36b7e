"""Pages of 2 MB: which memory is moved into them, which is left alone, and where nothing happens."""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform

import numpy as np
import pytest

from bank_memory import bank_in_large_pages, large_bytes
from banks import BANK, write_bank
from softkin import large_pages
from softkin.large_pages import LEAST_BYTES, in_large_pages, large_page, resident_blocks, use_large_pages
from workers import in_own_process

MOVES = large_page() > 0 and tuple(map(int, platform.release().split(".")[:2])) >= (6, 1)
needs_large_pages = pytest.mark.skipif(not large_page(), reason="the machine's keeper wants no large pages")
moves = pytest.mark.skipif(not MOVES, reason="the kernel moves memory some time or other, or not at all")


@pytest.fixture(autouse=True)
def asked_anew():
    """A test may have the system say something else."""
    large_page.cache_clear()
    yield
    large_page.cache_clear()


def untouched(blocks):
    """Memory that is not there yet, as an array with a row for each block, and the number of its first block."""
    size = large_page()
    memory = mmap.mmap(-1, (blocks + 1) * size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found = np.frombuffer(memory, np.uint8)
    skipped = -found.ctypes.data % size
    rows = found[skipped : skipped + blocks * size].reshape(blocks, size)
    return memory, rows, rows.ctypes.data // size


class Calls:
    """Stands for the C library of a kernel."""

    def __init__(self, *knows):
        self.knows, self.made = knows, []

    def madvise(self, address, length, advice):
        """As Linux answers, which says so where it does not know the advice."""
        size = large_page()
        self.made.append((address.value // size, length.value // size, advice))
        ctypes.set_errno(0 if advice in self.knows else errno.EINVAL)
        return 0 if advice in self.knows else -1


@needs_large_pages
def test_blocks_that_are_there_whole_are_told_from_others():
    """One page that was never written is enough: to move the block would make it."""
    memory, rows, first = untouched(4)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # or the first touch would bring the whole block where that is the rule
    rows[0], rows[2] = 1, 1
    rows[1, : -mmap.PAGESIZE] = 1

    assert resident_blocks() & set(range(first, first + 4)) == {first, first + 2}


@moves
def test_blocks_are_moved_and_hold_what_they_held():
    """Nothing but the pages changes."""
    before = large_bytes()
    _, rows, first = untouched(3)
    rows[:] = np.random.default_rng(0).integers(0, 256, rows.shape, np.uint8)
    kept = rows.tobytes()

    use_large_pages({first, first + 1, first + 2})

    assert rows.tobytes() == kept
    assert large_bytes() - before >= rows.nbytes


def test_only_what_comes_meanwhile_is_moved_and_only_where_it_is_much(monkeypatch):
    """A program that scores in process may hold tens of gigabytes, and small models gain nothing."""
    there, moved = {1, 2}, []
    monkeypatch.setattr(large_pages, "resident_blocks", lambda: set(there))
    monkeypatch.setattr(large_pages, "use_large_pages", moved.append)

    for new, expected in ((3, LEAST_BYTES), (4, LEAST_BYTES - 1)):
        with in_large_pages(expected):
            there.add(new)
            there.discard(1)

    assert moved == [{3}]


@moves
def test_a_bank_lies_in_large_pages_once_its_session_has_started(tmp_path):
    """But for the ends of what onnxruntime has in one piece."""
    write_bank(tmp_path, 400_000, 128, 10, "float32")

    found = in_own_process(bank_in_large_pages, tmp_path)

    assert found > 0.7 * (tmp_path / BANK).stat().st_size


@needs_large_pages
@pytest.mark.parametrize(
    ("knows", "advice"), [((14, 25), [25, 25]), ((14,), [25, 14, 25, 14])], ids=["since 6.1", "before"]
)
def test_neighbours_are_moved_together_now_or_later(monkeypatch, knows, advice):
    """An old kernel only takes a note of it."""
    calls = Calls(*knows)
    monkeypatch.setattr(large_pages, "_LIBC", calls)

    use_large_pages({9, 5, 6})

    assert [made[2] for made in calls.made] == advice
    assert list(dict.fromkeys(made[:2] for made in calls.made)) == [(5, 2), (9, 1)]


@pytest.mark.parametrize("text", ["always madvise [never]\n", None], ids=["never", "no such system"])
def test_whoever_wants_no_large_pages_gets_none(tmp_path, monkeypatch, text):
    """The kernel would move memory all the same."""
    calls, file = Calls(), tmp_path / "enabled"
    if text:
        file.write_text(text)
    monkeypatch.setattr(large_pages, "_ALLOWED", file)
    monkeypatch.setattr(large_pages, "_LIBC", calls)

    assert resident_blocks() == set()
    use_large_pages({5})
    assert calls.made == []
