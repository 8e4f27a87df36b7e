"""Banks of many classes with few rows each, where tiles of one size would mostly be padding."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import candidates
from banks import clusters
from catalogue import ANY_TEMPERATURE, CEILING, SOFTKIN
from softkin.bank import TILE_ROWS
from workers import Build, Worker, interleave

DIM = 128
BATCHES = (1, 32, 256)
ROUNDS = 15
FIXED = f"softkin, tiles of {TILE_ROWS}"


def _long_tail(rows: int, classes: int) -> NDArray[np.int64]:
    share = 1 / np.arange(1, classes + 1) ** 0.8
    return np.maximum(1, rows * share / share.sum()).astype(np.int64)


CASES = {
    "1,000 classes of 20 rows": np.full(1000, 20),
    "100 classes of 200 rows": np.full(100, 200),
    "10,000 classes of 8 rows": np.full(10_000, 8),
    "1,000 classes, a long tail": _long_tail(20_000, 1000),
}
"""Rows of each class."""


def measure_many_classes(device: str = "cpu", rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Milliseconds, and medians over rounds of the ratios to the product of the same rows, padding not among them."""
    softkin = partial(candidates.softkin, device=device)
    builds: dict[str, Build] = {
        SOFTKIN: softkin,
        ANY_TEMPERATURE: partial(softkin, bounded=False),
        FIXED: partial(softkin, tile_rows=TILE_ROWS),
        CEILING: candidates.matmul if device == "cpu" else partial(candidates.torch_matmul, device=device),
    }
    return [_measure(name, counts, builds, rounds) for name, counts in CASES.items()]


def _measure(title: str, counts: NDArray[np.int64], builds: dict[str, Build], rounds: int) -> dict[str, Any]:
    print(f"many classes: {title}", flush=True)
    labels = np.repeat(np.arange(len(counts)), counts)
    timings: dict[str, dict[str, Any]] = {name: {} for name in builds}
    with tempfile.TemporaryDirectory() as folder:
        found = clusters(Path(folder), len(labels), DIM, len(counts), BATCHES, labels)
        workers = [Worker(name, build, *found) for name, build in builds.items()]
        for worker in workers:
            if worker.error:
                raise RuntimeError(worker.error)
        for batch in BATCHES:
            times = {name: np.array(s) for name, s in interleave(workers, batch, rounds).items()}
            for name, seconds in times.items():
                timings[name][str(batch)] = {
                    "ms": round(1e3 * float(np.median(seconds)), 4),
                    "ratio": round(float(np.median(seconds / times[CEILING])), 2),
                }
        for worker in workers:
            worker.close()
    return {"title": f"{title}: {len(labels):,} x {DIM}", "timings": timings}
