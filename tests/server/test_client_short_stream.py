"""A stream that the other side ends well, and too early."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from softkin.async_client import AsyncClient
from softkin.client import Client
from softkin.errors import SoftkinError
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from standin import StandIn
from wire import scores_to_proto


class Short(pb_grpc.OutlierServiceServicer):
    """Answers the first request of a stream, and ends it with OK."""

    def GetDetector(self, request, context):  # noqa: N802
        """Enough for a client to split arrays."""
        return pb.GetDetectorResponse(limits=pb.Limits(max_rows=100, max_message_bytes=10_000))

    def ScoreStream(self, requests, context):  # noqa: N802
        """One answer."""
        next(requests)
        scores = StandIn().score(np.zeros((2, 2, 3), np.float32))
        yield pb.ScoreStreamResponse(answers=[pb.StreamAnswer(response=scores_to_proto(scores))])


@pytest.fixture
def target():
    """Of such a server."""
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_OutlierServiceServicer_to_server(Short(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def arrays():
    """Three, of which one is answered."""
    return [np.zeros((2, 2, 3), np.float32)] * 3


SAID = "the server ended the stream before it had answered every array"


def test_answers_that_are_missing_are_an_error(target, arrays):
    """Not the end: who zips answers with rows would never know."""
    with Client(target) as client:
        answers = client.score_stream(arrays)

        assert len(next(answers)) == 2
        with pytest.raises(SoftkinError, match=SAID):
            next(answers)


def test_answers_that_are_missing_are_an_error_for_the_asynchronous_client_too(target, arrays):
    """Whatever gRPC makes of sending into a call that has ended."""

    async def score():
        async with AsyncClient(target) as client:
            answers = client.score_stream(arrays)
            first = await anext(answers)
            with pytest.raises(SoftkinError, match=SAID):
                await anext(answers)
            return len(first)

    assert asyncio.run(score()) == 2
