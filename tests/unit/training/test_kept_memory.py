"""Memory between the steps of training: kept while it lasts, given back at its end."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from softkin_training.kept_memory import kept_memory

pytestmark = [
    pytest.mark.training,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are"),
]
BLOCK = 48 << 20
"""Bytes; more than glibc ever keeps by itself."""


def page_faults(times=8):
    """That taking, filling and freeing a block of memory costs, so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(BLOCK, dtype=torch.uint8).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes():
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_block_that_was_freed_is_taken_again():
    """Without asking the system for its pages, each of which it would have to clear."""
    with kept_memory():
        page_faults()
        kept = page_faults()

    assert kept < 100 < page_faults()


def test_what_is_free_is_given_back_at_the_end_also_after_an_error():
    """Of a process that goes on to other things."""
    inside = 0

    def fail():
        nonlocal inside
        page_faults()
        inside = resident_bytes()
        raise RuntimeError

    with pytest.raises(RuntimeError), kept_memory():
        fail()

    assert 0 < resident_bytes() < inside - BLOCK // 2


def test_another_c_library_is_left_alone(monkeypatch):
    """As musl's, or that of macOS."""
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())

    with kept_memory():
        assert torch.zeros(BLOCK, dtype=torch.uint8).any().logical_not()
