"""The scorer called in process, by one thread.

    python benchmarks/serving_in_process.py BUNDLE ROWS SECONDS

Prints one JSON line: calls per second and the median time of one.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

import numpy as np

from softkin.detector import Detector


def main() -> None:
    """Run and report."""
    detector = Detector.load(sys.argv[1], device="cpu", threads=1)
    rows, seconds = int(sys.argv[2]), float(sys.argv[3])
    x = np.random.default_rng(1).normal(size=(rows, *detector.manifest.input_shape)).astype(np.float32)
    for _ in range(5):
        detector.score(x)
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        detector.score(x)
        times.append(time.perf_counter() - before)
    print(json.dumps({"rate": len(times) / sum(times), "p50": median(times), "cpu": None}))


if __name__ == "__main__":
    main()
