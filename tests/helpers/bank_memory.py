"""What a bank takes in memory: for a process of its own, which finds no test modules."""

from __future__ import annotations

import gc
import re
from pathlib import Path

from banks import BANK, MODEL, open_bank
from softkin.scorer import Scorer
from workers import resident_bytes


def resident_by_stage(folder):
    """With a scorer and without it, twice; the first one pays for the libraries."""
    bank, stages = open_bank(folder / BANK), []
    for _ in range(2):
        scorer = Scorer(folder / MODEL, bank, folder / BANK, device="cpu", threads=1)
        stages.append(resident_bytes())
        del scorer
        gc.collect()
        stages.append(resident_bytes())
    return stages


def bank_in_large_pages(folder):
    """How many bytes a scorer that has just started holds in large pages."""
    bank, before = open_bank(folder / BANK), large_bytes()
    scorer = Scorer(folder / MODEL, bank, folder / BANK, device="cpu", threads=1)
    found = large_bytes() - before
    del scorer
    return found


def large_bytes():
    """How much of this process's own memory lies in large pages."""
    return 1024 * int(re.search(r"AnonHugePages: +(\d+)", Path("/proc/self/smaps_rollup").read_text())[1])
