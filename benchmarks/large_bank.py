"""Banks of millions of rows: `softkin-train fit` from vectors, then the detector that comes of it, each in a process.

    python benchmarks/large_bank.py [--banks 1000000x64 10000000x32 10000000x128] [--out benchmarks/results]

Ten million rows of 128 numbers take some 13 GB of memory and 21 GB of disk. Of `fit` at its peak both are told: what is
resident, and what of it is the process's own; the rest are pages of files, which the system takes back when it needs
them. Of the detector, what is resident after load.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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

BANKS = {"1000000x64": 5_000, "10000000x32": 10_000, "10000000x128": 10_000}
"""Classes, by rows and numbers a row."""
CALIBRATION_ROWS = 2_000
BATCHES = (1, 32, 256)
ROUNDS = 7
POLL_SECONDS = 0.02


def main() -> None:
    """Measure every size and write the table; or, for a child, one detector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--banks", nargs="+", choices=BANKS, default=list(BANKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        print(json.dumps(_score(options.score)))
        return
    found = [_measure(bank) for bank in options.banks]
    results = {"machine": describe_machine("cpu"), "banks": found}
    write_results("large_bank", results, _lines(results), options.out)


def _measure(bank: str) -> dict[str, Any]:
    rows, dim, classes = *map(int, bank.split("x")), BANKS[bank]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_vectors(folder, rows, dim, classes)
        started = time.perf_counter()
        data = ["--embeddings", "train.npz", "--calibration", "calibration.npz", "--bank-rows", str(rows)]
        command = [sys.executable, "-m", "softkin_training", "fit", *data, "--out", "."]
        fit = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        own = 0
        while not (ended := os.wait4(fit.pid, os.WNOHANG))[0]:
            own = max(own, _own_bytes(fit.pid))
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - started
        fit.returncode = os.waitstatus_to_exitcode(ended[1])  # or it would be waited for again
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
            "fit_peak_mb": ended[2].ru_maxrss * 1024 / 1e6,
            "fit_own_peak_mb": own / 1e6,
            **json.loads(scored.stdout),
        }


def _own_bytes(pid: int) -> int:
    """Resident memory of a process that stands in no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1]) if found else 0  # it has just ended


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
        "what is resident after load counts what onnxruntime itself needs. What is not fit's own are pages of files.",
        "",
        "| rows | numbers | classes | file, MB | fit, s | fit at its peak, MB | of it its own, MB | load, s | "
        "resident after load, MB | " + " | ".join(f"batch {n}, ms" for n in BATCHES) + " |",
        "|" + "---|" * (9 + len(BATCHES)),
    ]
    for b in results["banks"]:
        cells = [f"{b[key]:,}" for key in ("rows", "dim", "classes")]
        cells += [f"{b[key]:.0f}" for key in ("file_mb", "fit_seconds", "fit_peak_mb", "fit_own_peak_mb")]
        cells += [f"{b['load_seconds']:.1f}", f"{b['resident_mb']:.0f}"]
        cells += [f"{b['milliseconds'][str(n)]:.0f}" for n in BATCHES]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
