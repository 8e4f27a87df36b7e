"""A client in a process of its own: so many callers, so many seconds, calls prepared as bytes.

    python benchmarks/serving_load.py PORT[,PORT...] METHOD CALLERS SECONDS FILE

METHOD is echo, handed_over, score or stream; FILE holds one serialised ScoreRequest. Callers take the ports in turn,
each of which has a connection of its own. Prints one JSON line: calls, seconds and latencies of a sample of them.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from softkin.v1 import outlier_pb2 as pb

PATHS = {
    "echo": "/softkin.bench.Echo/Echo",
    "handed_over": "/softkin.bench.Echo/HandedOver",
    "score": "/softkin.v1.OutlierService/Score",
    "stream": "/softkin.v1.OutlierService/ScoreStream",
}
MOST_LATENCIES = 20_000


def main() -> None:
    """Run and report."""
    ports, method, callers, seconds, file = sys.argv[1:]
    request = Path(file).read_bytes()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    options.append(("grpc.use_local_subchannel_pool", 1))  # a connection each, also to the same port
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options=options) for port in ports.split(",")]
    for channel in channels:
        grpc.channel_ready_future(channel).result(timeout=30)
    load = _streams if method == "stream" else _calls
    load(channels, method, int(callers), 0.3, request)  # warm up
    calls, elapsed, latencies = load(channels, method, int(callers), float(seconds), request)
    print(json.dumps({"calls": calls, "seconds": elapsed, "latencies": sorted(latencies)[:MOST_LATENCIES]}))


def _calls(
    channels: list[grpc.Channel], method: str, callers: int, seconds: float, request: bytes
) -> tuple[int, float, list[float]]:
    """Closed loop: every caller sends its next call when the last one is answered."""
    calls = [channel.unary_unary(PATHS[method]) for channel in channels]
    counts, latencies = [0] * callers, [[] for _ in range(callers)]
    ready = threading.Barrier(callers + 1)
    stop = threading.Event()

    def caller(i: int) -> None:
        call = calls[i % len(calls)]
        ready.wait()
        while not stop.is_set():
            started = time.perf_counter()
            call(request)
            latencies[i].append(time.perf_counter() - started)
            counts[i] += 1

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    time.sleep(seconds)
    done, elapsed = sum(counts), time.perf_counter() - started
    stop.set()
    for thread in threads:
        thread.join()
    return done, elapsed, [x for own in latencies for x in own]


def _streams(
    channels: list[grpc.Channel], method: str, callers: int, seconds: float, request: bytes
) -> tuple[int, float, list[float]]:
    """So many streams, each as fast as the server reads."""
    calls = [channel.stream_stream(PATHS[method]) for channel in channels]
    message = pb.ScoreStreamRequest(request=pb.ScoreRequest.FromString(request)).SerializeToString()
    counts = [0] * callers
    stop = threading.Event()

    def messages() -> Iterator[bytes]:
        while not stop.is_set():
            yield message

    def stream(i: int) -> None:
        for response in calls[i % len(calls)](messages()):
            answers = pb.ScoreStreamResponse.FromString(response).answers
            assert all(a.HasField("response") for a in answers), answers[0].error
            counts[i] += len(answers)

    threads = [threading.Thread(target=stream, args=(i,)) for i in range(callers)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    done, elapsed = sum(counts), time.perf_counter() - started
    stop.set()
    for thread in threads:
        thread.join()
    return done, elapsed, []


if __name__ == "__main__":
    main()
