"""Clients of several servers: they take turns, and turn away from one that stops before it refuses them."""

from __future__ import annotations

import asyncio
import socket
import threading

import grpc
import pytest

from softkin import AsyncClient, Client
from softkin.converters import array_to_tensor
from softkin.errors import UnavailableError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

CALLS = 100


@pytest.fixture
def half_refuses(start, rows, gate):
    """The target of two servers, and what stops one: it refuses new calls for as long as one is held."""
    gate.set()
    detector = StandIn(gate=gate)
    first, second = start(detector), start(StandIn())
    calls = []
    stopping = threading.Thread(target=first.server.stop)

    def stop():
        gate.clear()
        calls.append(first.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60))
        first.until(lambda: first.server.pending_requests == 1)
        stopping.start()
        first.until(lambda: "is stopping" in refusal(first, rows(1)))

    yield f"ipv4:127.0.0.1:{first.server.port},127.0.0.1:{second.server.port}", stop
    gate.set()
    assert [len(c.result(timeout=20).p_value) for c in calls] == [1]
    stopping.join(timeout=20)


def refusal(running, x):
    """What a server refuses a call with; empty if it answers."""
    call = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(x)), timeout=1)
    return call.details() or ""


def test_no_call_fails_while_one_of_two_servers_stops(half_refuses, rows):
    """Retries alone do not help: half of them meet the same server, and after a few failures there are no more."""
    target, stop = half_refuses
    with Client(target) as client:
        client.score(rows(1))
        stop()

        answered = [len(client.score(rows(1)).p_value) for _ in range(CALLS)]

    assert answered == [1] * CALLS


def test_nor_does_one_of_a_task(half_refuses, rows):
    """The same where an event loop waits."""
    target, stop = half_refuses

    async def call():
        async with AsyncClient(target) as client:
            await client.score(rows(1))
            await asyncio.to_thread(stop)
            return [len((await client.score(rows(1))).p_value) for _ in range(CALLS)]

    assert asyncio.run(call()) == [1] * CALLS


def test_a_stream_does_not_keep_a_server_that_stops_in_its_clients_turns(start, rows):
    """The port closes, which sends them elsewhere; the stream is answered to its end."""
    running = start(StandIn(), drain_grace_seconds=600)
    more, requests = threading.Event(), [pb.ScoreStreamRequest(request={"inputs": array_to_tensor(rows(1))})] * 2

    def send():
        yield requests[0]
        assert more.wait(60)
        yield requests[1]

    stream = running.stub.ScoreStream(send())
    answers = [*next(stream).answers]
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    running.until(lambda: not is_open(running.server.port))

    more.set()
    answers += [answer for message in stream for answer in message.answers]
    stopping.join(timeout=20)

    assert [len(a.response.p_value) for a in answers] == [1, 1]
    assert stream.code() is grpc.StatusCode.OK
    assert not stopping.is_alive()
    assert running.server.abandoned_requests == 0


def is_open(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_stands_behind_one_address_is_watched_only_where_that_is_asked_for(start, rows):
    """It may be a proxy, which one server's end would shut; this one answers until its drain delay is over."""
    running = start(StandIn(), drain_delay_seconds=600)
    one = Client(f"ipv4:{running.target}")
    with one, running.client() as client, running.client(health_checks=True) as watching:
        for each in (one, client, watching):
            each.score(rows(1))
        stopping = threading.Thread(target=running.server.stop)
        stopping.start()
        running.until(lambda: not client.healthy())
        running.until(lambda: not watching.healthy())

        assert [len(each.score(rows(1)).p_value) for each in (one, client)] == [1, 1]
        with pytest.raises(UnavailableError, match=r"they start, or they stop$"):
            watching.score(rows(1))

    running.server.stop_now()
    stopping.join(timeout=20)
