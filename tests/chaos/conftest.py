from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from serving import Process
from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Starts serving processes; see `Process`."""
    started: list[Process] = []

    def run(*arguments: str, seconds: float = 120, **options: Any) -> Process:
        started.append(Process(*arguments, seconds=seconds, **options))
        return started[-1]

    yield run
    for process in started:
        process.close()


@pytest.fixture
def request_of():
    """A Score request of so many rows; the outlier score of row i is 6 * (value + i)."""

    def make(n: int = 1, value: float = 0.0) -> pb.ScoreRequest:
        x = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None] + np.float32(value), (n, 2, 3))
        return pb.ScoreRequest(inputs=array_to_tensor(np.ascontiguousarray(x)))

    return make


@pytest.fixture
def answers_well(request_of):
    """Checks that a server answers, and answers right."""

    def check(process: Process) -> None:
        with grpc.insecure_channel(process.target) as channel:
            call = channel.unary_unary(
                "/softkin.v1.OutlierService/Score",
                request_serializer=pb.ScoreRequest.SerializeToString,
                response_deserializer=pb.ScoreResponse.FromString,
            )
            found = call(request_of(3, 2.0), timeout=60)
        assert list(found.outlier_score) == [12.0, 18.0, 24.0]

    return check
