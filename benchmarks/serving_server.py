"""A softkin server with two calls more, which echo the message: one costs what gRPC alone costs.

The other waits for a thread that answers all that are there, as any server does whose threads wait for a merged batch.

    python benchmarks/serving_server.py BUNDLE [flags of softkin serve]

Prints one JSON line with its ports, then serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from queue import SimpleQueue
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from softkin import flags as options
from softkin import process
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.v1 import outlier_pb2 as pb

ECHO = "softkin.bench.Echo"


class HandedOver:
    """Handles a call by waiting until another thread has seen it."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[threading.Lock] = SimpleQueue()
        threading.Thread(target=self._answer, daemon=True).start()

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The request."""
        latch = threading.Lock()
        latch.acquire()
        self._waiting.put(latch)
        latch.acquire()
        return request

    def _answer(self) -> None:
        while True:
            batch = [self._waiting.get()]
            batch += [self._waiting.get() for _ in range(self._waiting.qsize())]
            for latch in batch:
                latch.release()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    settings = options.from_flags(parser.parse_args())
    process.prepare()
    server = Server(settings, Registry(), Metrics(CollectorRegistry(), version="bench"))
    behaviors = {"Echo": lambda request, context: request, "HandedOver": HandedOver()}
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            behavior, pb.ScoreRequest.FromString, pb.ScoreRequest.SerializeToString
        )
        for name, behavior in behaviors.items()
    }
    server._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, handlers),))
    server.start()
    process.settle()
    print(json.dumps({"port": server.port, "metrics_port": server.metrics_port}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
