"""What a bank takes in memory: for a process of its own, which finds no test modules."""

from __future__ import annotations

import gc

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
