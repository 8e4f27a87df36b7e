"""Memory in pages of 2 MB instead of 4 kB: to look up where the small ones lie takes a fifth of the time of one query.

NumPy asks for large pages for its arrays; onnxruntime, which holds the bank, does not. Linux alone has what it takes.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_LATER, _NOW = 14, 25
"""`MADV_HUGEPAGE`, which the kernel heeds some time or other, and `MADV_COLLAPSE`, which it has from 6.1 on."""
LEAST_BYTES = 8 << 20
"""What a processor finds without looking up, in small pages too: less memory gains nothing by large ones."""
_PRESENT = np.uint64(1 << 63)
"""The bit of a page in `/proc/self/pagemap` that says whether it is in memory."""


@cache
def large_page() -> int:
    """Bytes of a large page; 0 where there are none, or where whoever keeps the machine wants none."""
    try:
        return 0 if "[never]" in _ALLOWED.read_text() else int(_SIZE.read_text())
    except (OSError, ValueError):
        return 0


@contextmanager
def in_large_pages(expected_bytes: int) -> Iterator[None]:
    """Move what comes into memory while the block runs, and stays, into large pages, if that is `LEAST_BYTES` or more.

    Args:
        expected_bytes: how much will come, about: to look takes some milliseconds.
    """
    if expected_bytes < LEAST_BYTES:
        yield
        return
    before = resident_blocks()
    yield
    use_large_pages(resident_blocks() - before)


def resident_blocks() -> set[int]:
    """Which blocks of the size of a large page this process has in memory whole: their addresses over that size.

    Of its own writable memory alone: files that are mapped, and what is shared, belong to others too.
    """
    size = large_page()
    if not size:
        return set()
    found: set[int] = set()
    try:
        with Path("/proc/self/maps").open() as maps, Path("/proc/self/pagemap").open("rb") as pages:
            for start, stop in _own(maps):
                first, last = -(-start // size), stop // size
                if first < last:
                    pages.seek(first * size // mmap.PAGESIZE * 8)
                    found_here = np.frombuffer(pages.read((last - first) * size // mmap.PAGESIZE * 8), np.uint64)
                    whole = (found_here & _PRESENT != 0).reshape(last - first, -1).all(axis=1)
                    found.update((first + np.flatnonzero(whole)).tolist())
    except (OSError, ValueError):  # some sandboxes have no such files
        return set()
    return found


def use_large_pages(blocks: set[int]) -> None:
    """Move blocks into large pages, as far as the system has them; nothing else changes, nor does memory grow.

    Args:
        blocks: of `resident_blocks`. A block that is not there whole would become so.
    """
    size = large_page()
    if _LIBC is None or not size:
        return
    for _, run in groupby(enumerate(sorted(blocks)), key=lambda pair: pair[1] - pair[0]):
        here = [block for _, block in run]
        where = ctypes.c_void_p(here[0] * size), ctypes.c_size_t(len(here) * size)
        if _LIBC.madvise(*where, _NOW) and ctypes.get_errno() == errno.EINVAL:
            _LIBC.madvise(*where, _LATER)


def _own(maps: Iterator[str]) -> Iterator[tuple[int, int]]:
    """Start and end of each private writable mapping that is of no file."""
    for line in maps:
        addresses, rights, _, _, inode, *name = line.split()
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, stop = (int(address, 16) for address in addresses.split("-"))
            yield start, stop
