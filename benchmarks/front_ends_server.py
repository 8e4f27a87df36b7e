"""A server whose detector runs in another process, and that process: what `front_ends.py` compares.

    python benchmarks/front_ends_server.py device SOCKET BUNDLE
    python benchmarks/front_ends_server.py front SOCKET BUNDLE [flags of softkin serve]

The device process scores the batches that front-ends send it through a UNIX socket; they do all the rest: gRPC,
checking, merging, verdicts, metrics. Both end with their standard input.
"""

from __future__ import annotations

import sys
import threading
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import serving_server
from softkin import process
from softkin.detector import Detector
from softkin.scores import RowScores


def main() -> None:
    """Be one of the two."""
    role, socket, *more = sys.argv[1:]
    if role == "device":
        _serve_device(socket, Path(more[0]))
        return
    _send_batches_to(socket)
    sys.argv[1:] = more
    serving_server.main()


def _serve_device(socket: str, bundle: Path) -> None:
    process.prepare()
    detector = Detector.load(bundle, device="cpu", threads=1)
    listener = Listener(socket)
    process.settle()
    print("{}", flush=True)

    def accept() -> None:
        while True:
            threading.Thread(target=_score, args=(detector, listener.accept()), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


def _score(detector: Detector, front_end: Connection) -> None:
    while True:
        try:
            x = front_end.recv()
        except EOFError:
            return
        front_end.send(detector.score_rows(x))


def _send_batches_to(socket: str) -> None:
    device = threading.local()

    def score_rows(self: Detector, x: NDArray[np.generic], **how: Any) -> RowScores:
        if not hasattr(device, "connection"):  # a worker each
            device.connection = Client(socket)
        device.connection.send(x)
        found: RowScores = device.connection.recv()
        return found

    Detector.score_rows = score_rows  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
