"""How long a running call takes to stop: from `cancel()` in another thread to the return of `run()`."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from banks import BANK, MODEL, open_bank, write_bank
from workers import in_own_process

ROWS, DIM, CLASSES, BATCH = 1_000_000, 128, 10, 256
TRIES = 30
WHOLE_CALLS = 5


def measure_cancellation(device: str = "cpu", rows: int = ROWS) -> dict[str, Any]:
    """Milliseconds from `cancel()` to the end of the call, beside those of the call and of one chunk."""
    print(f"cancellation: {rows:,} x {DIM}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        in_own_process(write_bank, Path(name), rows, DIM, CLASSES, "float32")
        return {"title": f"{rows:,} x {DIM}", "batch": BATCH, **in_own_process(_measure, Path(name), device)}


def _measure(folder: Path, device: str) -> dict[str, Any]:
    from softkin.chunks import chunk_rows_for, cut_into_chunks, slice_rows_for
    from softkin.scorer import Scorer

    bank = open_bank(folder / BANK)
    scorer = Scorer(folder / MODEL, bank, folder / BANK, device=device)
    chunk_rows = chunk_rows_for(scorer.device, bank)
    slices = -(-BATCH // slice_rows_for(scorer.device, chunk_rows))
    parts = len(cut_into_chunks(bank, chunk_rows)) * slices
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, DIM), dtype=np.float32)
    times = [_seconds(scorer, x) for _ in range(1 + WHOLE_CALLS)][1:]
    whole = float(np.median(times))
    delays = rng.uniform(0, whole, TRIES)
    stopped = [s for s in (_cancel_after(scorer, x, float(d)) for d in delays) if s is not None]
    return {
        "device": scorer.device,
        "tries": TRIES,
        "stopped": len(stopped),
        "median_ms": round(1e3 * float(np.median(stopped)), 2),
        "max_ms": round(1e3 * max(stopped), 2),
        "chunks": parts,
        "chunk_ms": round(1e3 * whole / parts, 2),
        "whole_ms": round(1e3 * whole, 1),
    }


def _seconds(scorer: Any, x: Any) -> float:
    started = time.perf_counter()
    scorer.run(x)
    return time.perf_counter() - started


def _cancel_after(scorer: Any, x: Any, delay: float) -> float | None:
    """Seconds from the cancellation to the end of the call; None where the call was over first."""
    from softkin.cancellation import Cancellation
    from softkin.errors import CancelledError

    cancellation, ended = Cancellation(), []

    def run() -> None:
        try:
            scorer.run(x, cancellation)
        except CancelledError:
            ended.append(time.perf_counter())

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(delay)
    asked = time.perf_counter()
    cancellation.cancel()
    thread.join()
    return ended[0] - asked if ended else None
