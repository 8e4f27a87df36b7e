"""What condensing a bank gains: 20 times fewer rows, with weights."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import candidates
from banks import clusters
from workers import Worker, interleave

WHOLE, CONDENSED = 20_000, 1_000
DIM, CLASSES, LAYERS = 256, 10, 3
BATCHES = (1, 32, 256)
ROUNDS = 21


def measure_condensed(device: str = "cpu", rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds with the whole bank and the condensed one, and the median over rounds of their ratio."""
    print(f"condensed: {CONDENSED:,} of {WHOLE:,} rows, {LAYERS} layers x {DIM}", flush=True)
    builds = {
        str(WHOLE): partial(candidates.softkin, layers=LAYERS, device=device),
        str(CONDENSED): partial(candidates.softkin, layers=LAYERS, device=device, weighted=True),
    }
    timings = {}
    with tempfile.TemporaryDirectory() as name:
        workers = []
        for rows, build in builds.items():
            folder = Path(name) / rows
            folder.mkdir()
            workers.append(Worker(rows, build, *clusters(folder, int(rows), DIM, CLASSES, BATCHES)))
            if workers[-1].error:
                raise RuntimeError(workers[-1].error)
        for batch in BATCHES:
            times = {n: np.array(s) for n, s in interleave(workers, batch, rounds).items()}
            timings[str(batch)] = {
                "whole_ms": round(1e3 * float(np.median(times[str(WHOLE)])), 4),
                "condensed_ms": round(1e3 * float(np.median(times[str(CONDENSED)])), 4),
                "times_faster": round(float(np.median(times[str(WHOLE)] / times[str(CONDENSED)])), 2),
            }
        for worker in workers:
            worker.close()
    return {"whole": WHOLE, "condensed": CONDENSED, "dim": DIM, "layers": LAYERS, "timings": timings}
