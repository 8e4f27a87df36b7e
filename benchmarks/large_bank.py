"""Banks of millions of rows: `softkin-train fit` from vectors, then the detector that comes of it, each in a process.

    python benchmarks/large_bank.py [--rows 1000000 10000000] [--out benchmarks/results]

Ten million rows take some 12 GB of memory and 5 GB of disk. Memory is what is resident: of `fit` at its peak, of the
detector after load.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from machine import describe_machine
from result_files import write_results
from softkin import Detector
from workers import resident_bytes

WIDTHS = {1_000_000: (64, 5_000), 10_000_000: (32, 10_000)}
"""Numbers a row and classes, by rows."""
CALIBRATION_ROWS = 2_000
BATCHES = (1, 32, 256)
ROUNDS = 7


def main() -> None:
    """Measure every size and write the table; or, for a child, one detector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        print(json.dumps(_score(options.score)))
        return
    found = [_measure(rows) for rows in options.rows]
    results = {"machine": describe_machine("cpu"), "banks": found}
    write_results("large_bank", results, _lines(results), options.out)


def _measure(rows: int) -> dict[str, Any]:
    dim, classes = WIDTHS[rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_vectors(folder, rows, dim, classes)
        started = time.perf_counter()
        data = ["--embeddings", "train.npz", "--calibration", "calibration.npz", "--bank-rows", str(rows)]
        command = [sys.executable, "-m", "softkin_training", "fit", *data, "--out", "."]
        fit = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(fit.pid, 0)
        fit.returncode = os.waitstatus_to_exitcode(status)  # or it would be waited for again
        seconds = time.perf_counter() - started
        assert not fit.returncode, command
        scored = subprocess.run(
            [sys.executable, __file__, "--score", str(folder)], check=True, capture_output=True, text=True
        )
        return {
            "rows": rows,
            "dim": dim,
            "classes": classes,
            "file_mb": (folder / "bundle" / "bank.safetensors").stat().st_size / 1e6,
            "fit_seconds": seconds,
            "fit_peak_mb": usage.ru_maxrss * 1024 / 1e6,
            **json.loads(scored.stdout),
        }


def _write_vectors(folder: Path, rows: int, dim: int, classes: int) -> None:
    """Rows around a centre for each class: those of the bank, and others that calibrate."""
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(classes, dim)).astype(np.float32)
    for name, n, part in (("train", rows, "train"), ("calibration", CALIBRATION_ROWS, "test")):
        y = rng.permutation(n) % classes
        x = rng.standard_normal((n, dim), dtype=np.float32)
        for start in range(0, n, 1 << 18):
            here = slice(start, start + (1 << 18))
            x[here] += centers[y[here]]
        np.savez(folder / f"{name}.npz", **{f"x_{part}": x, f"y_{part}": y})


def _score(folder: Path) -> dict[str, Any]:
    x = np.load(folder / "calibration.npz")["x_test"]
    before, started = resident_bytes(), time.perf_counter()
    detector = Detector.load(folder / "bundle", device="cpu")
    loaded, resident = time.perf_counter() - started, resident_bytes() - before
    milliseconds = {}
    for n in BATCHES:
        detector.score(x[:n])
        times = []
        for i in range(ROUNDS):
            started = time.perf_counter()
            detector.score(x[i * n : (i + 1) * n])
            times.append(time.perf_counter() - started)
        milliseconds[str(n)] = 1e3 * median(times)
    return {"load_seconds": loaded, "resident_mb": resident / 1e6, "milliseconds": milliseconds}


def _lines(results: dict[str, Any]) -> list[str]:
    m = results["machine"]
    lines = [
        f"# Large banks, {m['date']}",
        "",
        f"{m['processor']}, {m['cores']} cores, {m['memory_gb']} GB. `softkin-train fit --embeddings` of all rows, "
        f"float32, {CALIBRATION_ROWS:,} rows to calibrate; then the detector, called in process, medians of {ROUNDS};",
        "what is resident after load counts what onnxruntime itself needs.",
        "",
        "| rows | numbers | classes | file, MB | fit, s | fit at its peak, MB | load, s | resident after load, MB | "
        + " | ".join(f"batch {n}, ms" for n in BATCHES)
        + " |",
        "|" + "---|" * (8 + len(BATCHES)),
    ]
    for b in results["banks"]:
        times = " | ".join(f"{b['milliseconds'][str(n)]:.0f}" for n in BATCHES)
        lines.append(
            f"| {b['rows']:,} | {b['dim']} | {b['classes']:,} | {b['file_mb']:.0f} | {b['fit_seconds']:.0f} | "
            f"{b['fit_peak_mb']:.0f} | {b['load_seconds']:.1f} | {b['resident_mb']:.0f} | {times} |"
        )
    return lines


if __name__ == "__main__":
    main()
