"""Memory of banks, in a process of its own: what a load leaves over, and what a bank that has gone leaves."""

from __future__ import annotations

import platform

import pytest

from bank_memory import resident_by_stage
from banks import BANK, write_bank
from workers import in_own_process

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")

ROWS, DIM = 400_000, 128


def test_an_int8_bank_takes_its_size_and_leaves_nothing_behind(tmp_path):
    """It is packed in blocks that glibc keeps when they are free: some more after a load, nearly all at the end."""
    write_bank(tmp_path, ROWS, DIM, 10, "int8")
    size = (tmp_path / BANK).stat().st_size

    first, gone, second, end = in_own_process(resident_by_stage, tmp_path)

    assert 0.8 * size < first - gone < 0.97 * size  # ids and labels are not the session's
    assert 0.8 * size < second - gone < 0.97 * size
    assert abs(end - gone) < 0.1 * size
