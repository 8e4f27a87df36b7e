"""The scorer called in process; with a port, after an echo each time: what a caller would wait for both.

    python benchmarks/serving_in_process.py BUNDLE DEVICE FILE SECONDS THREADS [PORT]

FILE holds one serialised ScoreRequest. Prints one JSON line: calls per second and the median time of one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median

import grpc

from serving_load import PATHS
from softkin.converters import tensor_to_array
from softkin.detector import Detector
from softkin.v1 import outlier_pb2 as pb


def main() -> None:
    """Run and report."""
    bundle, device, file, seconds, threads, *port = sys.argv[1:]
    detector = Detector.load(bundle, device=device, threads=int(threads))
    request = Path(file).read_bytes()
    x = tensor_to_array(pb.ScoreRequest.FromString(request).inputs, "inputs")
    channel = grpc.insecure_channel(f"127.0.0.1:{port[0]}") if port else None
    echo = channel.unary_unary(PATHS["echo"]) if channel else lambda request: request
    for _ in range(5):
        echo(request)
        detector.score(x)
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < float(seconds):
        before = time.perf_counter()
        echo(request)
        detector.score(x)
        times.append(time.perf_counter() - before)
    print(json.dumps({"rate": len(times) / sum(times), "p50": median(times), "cpu": None}))


if __name__ == "__main__":
    main()
