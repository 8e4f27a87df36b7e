"""The server beside an echo of the same message, a server that does not merge requests, and the scorer in process.

    python benchmarks/serving.py [--out benchmarks/results] [--seconds 3] [--rounds 7]

All parts of a round run one after the other, on the same servers, from clients in processes of their own; figures are
medians over the rounds. CPU time is the server's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from machine import describe_machine
from serving_report import write_report
from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import fit_config

HERE = Path(__file__).parent
DIM = 64
SMALL_BANK, LARGE_BANK = 1_500, 40_000
CALLERS = 64
WARM_UP_SECONDS = 0.3
"""Of `serving_load.py`, whose CPU time counts too."""
OVERLOAD_ROWS = 16
DEADLINE_SECONDS = 1.0


class Served:
    """A server in a process of its own."""

    def __init__(self, bundle: Path, *flags: str) -> None:
        command = [sys.executable, str(HERE / "serving_server.py"), str(bundle), "--host", "127.0.0.1"]
        command += ["--port", "0", "--metrics-port", "0", "--device", "cpu", "--threads", "1", *flags]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, method: str, callers: int, seconds: float, request: Path) -> dict[str, Any]:
        """What a closed loop of callers gets: calls per second, median latency, the server's CPU time per call."""
        before = self.cpu_seconds()
        found = _run("serving_load.py", self.port, method, callers, seconds, request)
        share = seconds / (seconds + WARM_UP_SECONDS)
        return {
            "rate": found["calls"] / found["seconds"],
            "cpu": (self.cpu_seconds() - before) * share / max(1, found["calls"]),
            "p50": median(found["latencies"]) if found["latencies"] else None,
        }


def main() -> None:
    """Build the bundles, run the rounds, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        small, large = _bundle(work / "small", SMALL_BANK), _bundle(work / "large", LARGE_BANK)
        requests = {n: _request(work / f"request{n}", n) for n in (1, OVERLOAD_ROWS, 256)}
        merged = stack.enter_context(Served(small, "--workers", "1"))
        alone = stack.enter_context(Served(small, "--workers", "1", "--max-batch-rows", "1"))
        heavy = stack.enter_context(Served(large, "--workers", "1"))
        rounds: dict[str, list[Any]] = {}
        for i in range(options.rounds):
            for name, server, method, callers, rows in (
                ("echo, 64 callers", merged, "echo", CALLERS, 1),
                ("score, 64 callers", merged, "score", CALLERS, 1),
                ("score without merging, 64 callers", alone, "score", CALLERS, 1),
                ("stream, 1", merged, "stream", 1, 1),
                ("stream, 4", merged, "stream", 4, 1),
                ("echo, 1 caller", merged, "echo", 1, 1),
                ("score, 1 caller", merged, "score", 1, 1),
                ("score 256 rows, 4 callers", heavy, "score", 4, 256),
            ):
                found = server.load(method, callers, options.seconds, requests[rows])
                rounds.setdefault(name, []).append(found)
                print(f"round {i + 1}: {name}: {found['rate']:.0f} per second", flush=True)
            for name, bundle, rows in (("in process, 1 row", small, 1), ("in process, 256 rows", large, 256)):
                rounds.setdefault(name, []).append(_run("serving_in_process.py", bundle, rows, options.seconds))
        peak = [_overload(heavy, requests[OVERLOAD_ROWS], None, options.seconds) for _ in range(options.rounds)]
        rate = median(p["goodput"] for p in peak)
        twice = [_overload(heavy, requests[OVERLOAD_ROWS], 2 * rate, options.seconds) for _ in range(options.rounds)]
    results = {"machine": describe_machine("cpu"), "rounds": rounds, "peak": peak, "overload": twice}
    write_report(results, options.out)


def _overload(server: Served, request: Path, rate: float | None, seconds: float) -> dict[str, Any]:
    """At a rate per second; at what a closed loop of 64 callers reaches when None."""
    if rate is None:
        return {"goodput": server.load("score", CALLERS, seconds, request)["rate"]}
    found = _run("serving_overload.py", server.port, rate, seconds, DEADLINE_SECONDS, request)
    latencies = found.pop("latencies")
    found["goodput"] = len(latencies) / found["seconds"]
    found["rate"] = rate
    found["p50"], found["p99"] = (latencies[min(len(latencies) - 1, int(q * len(latencies)))] for q in (0.5, 0.99))
    return found


def _run(script: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    time.sleep(0.2)  # what a client leaves behind is gone before the next one comes
    return found


def _bundle(folder: Path, rows: int) -> Path:
    """Vectors around ten centres: 20 % of them calibrate."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows * 5 // 4)
    x = 2 * rng.normal(size=(10, DIM))[y] + rng.normal(size=(len(y), DIM))
    folder.mkdir()
    np.savez(folder / "vectors.npz", x_train=x.astype(np.float32), y_train=y)
    fit_embeddings(folder / "vectors.npz", folder, fit_config(name="vectors", layers=["embedding"]))
    return folder / "bundle"


def _request(file: Path, rows: int) -> Path:
    x = np.random.default_rng(1).normal(size=(rows, DIM)).astype(np.float32)
    file.write_bytes(pb.ScoreRequest(inputs=array_to_tensor(x)).SerializeToString())
    return file


if __name__ == "__main__":
    main()
