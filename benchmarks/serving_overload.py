"""A client in a process of its own that sends at a given rate whatever comes back: the load of an open world.

    python benchmarks/serving_overload.py PORT RATE SECONDS DEADLINE FILE

FILE holds one serialised ScoreRequest. Prints one JSON line: answers by status, latencies of those that succeeded, the
statuses that the health service told meanwhile, and refusals without an explanation or a time to wait.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from softkin.statuses import RETRY_AFTER

SCORE = "/softkin.v1.OutlierService/Score"
READY = "softkin.v1.OutlierService"


def main() -> None:
    """Run and report."""
    port, rate, seconds, deadline = int(sys.argv[1]), *map(float, sys.argv[2:5])
    request = Path(sys.argv[5]).read_bytes()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    call = channel.unary_unary(SCORE)
    for _ in range(50):
        call(request)
    codes: Counter[str] = Counter()
    latencies: list[float] = []
    unexplained, health = [0], _HealthWatch(channel)
    done = threading.Semaphore(0)

    def send(at: float) -> None:
        future = call.future(request, timeout=deadline)

        def ended(f: grpc.Future) -> None:
            code = f.code()
            codes[code.name] += 1
            if code is grpc.StatusCode.OK:
                latencies.append(time.perf_counter() - at)
            elif code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                trailers = dict(f.trailing_metadata() or ())
                unexplained[0] += not (f.details() and RETRY_AFTER in trailers)
            done.release()

        future.add_done_callback(ended)

    started, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - started) < seconds:
        while sent < now * rate:
            send(started + sent / rate)  # the time at which it was due: a late sender hides no wait
            sent += 1
        time.sleep(0.0005)
    for _ in range(sent):
        done.acquire()
    elapsed = time.perf_counter() - started
    statuses = health.stop()
    print(
        json.dumps(
            {
                "sent": sent,
                "seconds": elapsed,
                "codes": codes,
                "latencies": sorted(latencies),
                "unexplained_refusals": unexplained[0],
                "health": statuses,
            }
        )
    )


class _HealthWatch:
    """Asks every 20 ms until it is stopped."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._check = health_pb2_grpc.HealthStub(channel).Check
        self._seen: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                status = self._check(health_pb2.HealthCheckRequest(service=READY), timeout=5).status
                self._seen[health_pb2.HealthCheckResponse.ServingStatus.Name(status)] += 1
            except grpc.RpcError as e:
                self._seen[e.code().name] += 1

    def stop(self) -> dict[str, int]:
        self._stop.set()
        self._thread.join()
        return dict(self._seen)


if __name__ == "__main__":
    main()
