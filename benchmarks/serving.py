"""The server beside an echo of the same message, a server that does not merge requests, and the scorer in process.

    python benchmarks/serving.py [--out benchmarks/results] [--seconds 2] [--rounds 7] [--device cuda]

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
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Self

import numpy as np

import serving_bundles
from machine import describe_machine
from serving_report import write_report

HERE = Path(__file__).parent
BANKS = {"small": 1_500, "large": 40_000}
"""Rows of the banks of vectors."""
CALLERS = 64
WARM_UP_SECONDS = 0.3
"""Of `serving_load.py`, whose CPU time counts too."""
OVERLOADS = {"small requests": (16, 64), "large requests": (256, 16)}
"""Rows of a request, and the callers that find the peak: gRPC is the limit of the first, the device of the second."""
DEADLINE_SECONDS = 1.0


class Running:
    """A script of this folder in a process of its own, which prints a JSON line once it has started."""

    def __init__(self, script: str, *arguments: str) -> None:
        command = [sys.executable, str(HERE / script), *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.started = json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Served(Running):
    """A server in a process of its own."""

    def __init__(self, bundle: Path, device: str, *flags: str, script: Sequence[str] = ("serving_server.py",)) -> None:
        command = [*script, str(bundle), "--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
        super().__init__(*command, "--device", device, "--threads", "1", *flags)
        self.port = self.started["port"]

    def load(self, method: str, callers: int, seconds: float, request: Path) -> dict[str, Any]:
        """What a closed loop of callers gets: calls per second, median latency, the server's CPU time per call."""
        return load([self], [self.port], method, callers, seconds, request)


def load(
    processes: Sequence[Running], ports: Sequence[int], method: str, callers: int, seconds: float, request: Path
) -> dict[str, Any]:
    """As `Served.load`, of a server of several processes."""
    before = sum(process.cpu_seconds() for process in processes)
    found = _run("serving_load.py", ",".join(map(str, ports)), method, callers, seconds, request)
    share = seconds / (seconds + WARM_UP_SECONDS)
    return {
        "rate": found["calls"] / found["seconds"],
        "cpu": (sum(process.cpu_seconds() for process in processes) - before) * share / max(1, found["calls"]),
        "p50": median(found["latencies"]) if found["latencies"] else None,
    }


def main() -> None:
    """Build the bundles, run the rounds, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the scorers run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        bundles = {f"{name} bank": serving_bundles.vectors(work / name, rows) for name, rows in BANKS.items()}
        bundles["network"] = serving_bundles.network(work / "network")
        rng = np.random.default_rng(1)
        requests = {
            n: serving_bundles.request(work / f"vectors{n}", rng.normal(size=(n, serving_bundles.DIM)).astype("f4"))
            for n in (1, 16, 256)
        }
        image = serving_bundles.request(work / "image", serving_bundles.images(rng, 1))

        def served(name: str, workers: int, *flags: str) -> Served:
            return stack.enter_context(Served(bundles[name], options.device, "--workers", str(workers), *flags))

        merged = {name: served(name, 1) for name in bundles}
        alone = {name: served(name, 1, "--max-batch-rows", "1") for name in ("small bank", "network")}
        two = served("large bank", 2)
        row = {name: image if name == "network" else requests[1] for name in bundles}
        calls = [
            ("echo, 64 callers", merged["small bank"], "echo", CALLERS, requests[1]),
            ("echo that waits for a thread, 64 callers", merged["small bank"], "handed_over", CALLERS, requests[1]),
            *((f"score, 64 callers, {b}", s, "score", CALLERS, row[b]) for b, s in merged.items()),
            *((f"score without merging, 64 callers, {b}", s, "score", CALLERS, row[b]) for b, s in alone.items()),
            ("stream, 1", merged["small bank"], "stream", 1, requests[1]),
            ("stream, 4", merged["small bank"], "stream", 4, requests[1]),
            ("echo, 1 caller", merged["small bank"], "echo", 1, requests[1]),
            *((f"score, 1 caller, {b}", merged[b], "score", 1, row[b]) for b in ("small bank", "network")),
            ("score 256 rows, 4 callers, 1 worker", merged["large bank"], "score", 4, requests[256]),
            ("score 256 rows, 4 callers, 2 workers", two, "score", 4, requests[256]),
        ]
        in_process = [
            *(
                (f"echo, then scorer in process, {b}", b, row[b], 1, merged["small bank"].port)
                for b in ("small bank", "network")
            ),
            ("in process, 256 rows, 1 thread", "large bank", requests[256], 1),
            ("in process, 256 rows, 2 threads", "large bank", requests[256], 2),
        ]
        rounds: dict[str, list[Any]] = {}
        for i in range(options.rounds):
            for name, server, method, callers, request in calls:
                found = server.load(method, callers, options.seconds, request)
                rounds.setdefault(name, []).append(found)
                print(f"round {i + 1}: {name}: {found['rate']:.0f} per second", flush=True)
            for name, bundle, request, *more in in_process:
                found = _run("serving_in_process.py", bundles[bundle], options.device, request, options.seconds, *more)
                rounds.setdefault(name, []).append(found)
        overload = {
            name: _overload(merged["large bank"], requests[rows], callers, options)
            for name, (rows, callers) in OVERLOADS.items()
        }
    results = {"machine": describe_machine(options.device), "rounds": rounds, "overload": overload}
    write_report(results, options.out)


def _overload(server: Served, request: Path, callers: int, options: argparse.Namespace) -> dict[str, Any]:
    """The peak, by a closed loop of so many callers; then twice its rate, whatever comes back."""
    loads = [server.load("score", callers, options.seconds, request) for _ in range(options.rounds)]
    peak = [found["rate"] for found in loads]
    rate = 2 * median(peak)
    twice = []
    for _ in range(options.rounds):
        before = server.cpu_seconds()
        found = _run("serving_overload.py", server.port, rate, options.seconds, DEADLINE_SECONDS, request)
        latencies = found.pop("latencies")
        found["goodput"] = len(latencies) / found["seconds"]
        found["cores"] = (server.cpu_seconds() - before) / found["seconds"]
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            found[name] = latencies[min(len(latencies) - 1, int(q * len(latencies)))]
        twice.append(found)
        print(f"overload: {found['goodput']:.0f} of {median(peak):.0f} per second", flush=True)
    cores = [found["rate"] * found["cpu"] for found in loads]
    return {"callers": callers, "peak": peak, "cores": cores, "rate": rate, "twice": twice}


def _run(script: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    time.sleep(0.2)  # what a client leaves behind is gone before the next one comes
    return found


if __name__ == "__main__":
    main()
