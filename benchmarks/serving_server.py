"""A softkin server with one call more: an echo of the same message, which costs what gRPC alone costs.

    python benchmarks/serving_server.py BUNDLE [flags of softkin serve]

Prints one JSON line with its ports, then serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import sys

import grpc
from prometheus_client import CollectorRegistry

from softkin import flags as options
from softkin import process
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.v1 import outlier_pb2 as pb

ECHO = "softkin.bench.Echo"


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    options.add_flags(parser)
    settings = options.from_flags(parser.parse_args())
    process.prepare()
    server = Server(settings, Registry(), Metrics(CollectorRegistry(), version="bench"))
    echo = grpc.unary_unary_rpc_method_handler(
        lambda request, context: request, pb.ScoreRequest.FromString, pb.ScoreRequest.SerializeToString
    )
    server._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ECHO, {"Echo": echo}),))
    server.start()
    process.settle()
    print(json.dumps({"port": server.port, "metrics_port": server.metrics_port}), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
