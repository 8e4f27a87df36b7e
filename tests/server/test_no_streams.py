"""A server that takes no streams, `max_streams` = 0: it says so, and is not said to be full."""

from __future__ import annotations

import grpc
import pytest

from event_loops import run
from softkin.converters import array_to_tensor
from softkin.errors import UnsupportedError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

SAID = "this server takes no streams, max_streams = 0; send unary calls"


@pytest.fixture
def running(start):
    """Such a server."""
    return start(StandIn(), max_streams=0)


def test_the_refusal_states_no_delay_and_counts_under_its_own_reason(running, rows):
    """A delay would be obeyed for ever, and the alert of an overload would fire where nothing is pending."""
    message = pb.ScoreStreamRequest(request=pb.ScoreRequest(inputs=array_to_tensor(rows(1))))

    with pytest.raises(grpc.RpcError) as e:
        list(running.stub.ScoreStream(iter([message]), timeout=20))

    assert (e.value.code(), e.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, SAID)
    assert {"grpc-retry-pushback-ms", "grpc-status-details-bin"}.isdisjoint(dict(e.value.trailing_metadata()))
    counted = {name: n for name, n in running.series("softkin_rejected_total").items() if n}
    assert counted == {"softkin_rejected_total{'reason': 'unsupported'}": 1}


def test_both_clients_raise_what_no_retry_helps_with(running, rows):
    """With the server's words, which say what to do instead."""

    async def stream(client):
        return [scores async for scores in client.score_stream([rows(1)])]

    with running.client() as client, pytest.raises(UnsupportedError) as e:
        next(client.score_stream([rows(1)]))
    with pytest.raises(UnsupportedError) as of_task:
        run(running, stream)

    assert str(e.value) == str(of_task.value) == f"{running.target}: {SAID}"
