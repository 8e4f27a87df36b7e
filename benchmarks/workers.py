"""One process per candidate, so that the thread pools of different libraries never share cores within a measurement.

A worker builds its candidate, then runs one call per message; the parent interleaves the candidates round by round.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

PAUSE_SECONDS = 0.02
"""Before each measurement, so that the last candidate's idle threads are asleep."""
WARM_UP_SECONDS = 0.04
CALLS = 3
"""Timed calls in a row; their median counts."""
LEAST_ROUNDS = 3
"""However long they take."""
# OpenMP's idle threads spin for a fifth of a second by default, on the cores of whoever is measured next.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

_T = TypeVar("_T")
Call = Callable[[NDArray[np.float32]], Any]
Build = Callable[..., Call]


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def gpu_bytes() -> int:
    """Memory that is in use on all GPUs, by whomever."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return 2**20 * sum(int(line) for line in subprocess.check_output(command, text=True).split())


def _serve(pipe: Connection, build: Build, arguments: dict[str, Any], queries: dict[int, str]) -> None:
    before = resident_bytes()
    try:
        call = build(**arguments)
        x = {rows: np.load(file) for rows, file in queries.items()}
        for batch in x.values():
            call(batch)  # the first call of a size allocates
    except Exception as e:  # a candidate that cannot run is a line in the report, not the end of it
        pipe.send(f"{type(e).__name__}: {e}")
        return
    pipe.send({"resident_bytes": resident_bytes() - before, "device": getattr(call, "device", "cpu")})
    while (rows := pipe.recv()) is not None:
        # Whoever ran before has emptied the caches, and the scheduler needs a few ticks to spread woken threads.
        warm = time.perf_counter() + WARM_UP_SECONDS
        while time.perf_counter() < warm:
            call(x[rows])
        times = [time.perf_counter()]
        for _ in range(CALLS):
            call(x[rows])
            times.append(time.perf_counter())
        seconds = float(np.median(np.diff(times)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        pipe.send({"seconds": seconds, "peak_bytes": peak})


class Worker:
    """A candidate in a process of its own.

    Args:
        name: of the candidate.
        build: importable function that returns the call to measure.
        arguments: for `build`.
        queries: batch size -> npy file of the batch.
        gpu: measure memory on the GPU too.
    """

    def __init__(
        self, name: str, build: Build, arguments: dict[str, Any], queries: dict[int, str], *, gpu: bool = False
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, build, arguments, queries), daemon=True)
        gpu_before = gpu_bytes() if gpu else 0
        os.environ.update(PASSIVE)  # before the child loads any OpenMP
        self._process.start()
        child.close()  # or a process that dies at once would leave a pipe that never ends
        ready = self._receive()
        self.error = ready if isinstance(ready, str) else None
        self.resident_bytes = 0 if isinstance(ready, str) else int(ready["resident_bytes"])
        self.device = "" if isinstance(ready, str) else str(ready["device"])
        self.gpu_bytes = gpu_bytes() - gpu_before if gpu else 0
        """On all GPUs together, with the context of the process."""
        self.peak_bytes = 0

    def measure(self, rows: int) -> float:
        """Seconds of one call on the batch of that size."""
        self._pipe.send(rows)
        answer = self._receive()
        if isinstance(answer, str):
            raise RuntimeError(f"{self.name}: {answer}")
        self.peak_bytes = int(answer["peak_bytes"])
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(timeout=30)

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            return f"the process ended with code {self._process.exitcode}"


def interleave(workers: list[Worker], rows: int, rounds: int, seconds: float = math.inf) -> dict[str, list[float]]:
    """Seconds per candidate and round; in each round every candidate runs once, in turn.

    Args:
        workers: the candidates.
        rows: batch size.
        rounds: how many at most.
        seconds: begin no further round after that long, once there are `LEAST_ROUNDS`.
    """
    times: dict[str, list[float]] = {w.name: [] for w in workers}
    end = time.perf_counter() + seconds
    for i in range(rounds):
        if i >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        # A random order each round: nobody always runs after the same neighbour.
        for j in np.random.default_rng(i).permutation(len(workers)):
            time.sleep(PAUSE_SECONDS)
            times[workers[j].name].append(workers[j].measure(rows))
    return times


def in_own_process(function: Callable[..., _T], *arguments: Any) -> _T:
    """The function's result, from a fresh process that ends with it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
