"""AsyncClient: the numbers and errors of Client, as coroutines; a cancelled task cancels its call on the server."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace

import numpy as np
import pytest

from authority import Authority
from event_loops import run
from softkin.async_client import AsyncClient
from softkin.converters import proto_to_limits
from softkin.errors import (
    AuthenticationError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SoftkinError,
    UnavailableError,
)
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import GUARANTEES
from standin import StandIn

UNARY = {"grpc_type": "UNARY", "grpc_service": "softkin.v1.OutlierService", "grpc_method": "Score"}
TOKEN = "first-token-0123456789"
BAD = np.full((1, 2, 3), np.nan, np.float32)


async def collect(answers, into=None):
    """All answers of a stream, as a list; what `into` holds when the stream fails came before."""
    into = [] if into is None else into
    async for scores in answers:
        into.append(scores)
    return into


def bits(scores):
    """All that an answer says, arrays as bytes; not how long it took."""

    def plain(value):
        return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value

    found = {f.name: plain(getattr(scores, f.name)) for f in fields(scores) if f.name != "stage_seconds"}
    if scores.neighbors is not None:
        found["neighbors"] = {f.name: plain(getattr(scores.neighbors, f.name)) for f in fields(scores.neighbors)}
        found["parts"] = {f.name: plain(getattr(scores.parts, f.name)) for f in fields(scores.parts)}
    return found


def cancelled(running):
    """Whether the server has counted a cancellation, and has nothing left to do."""
    return running.sample("softkin_rejected_total", reason="cancelled") and running.server.pending_requests == 0


@pytest.mark.parametrize("smoothing_seed", [None, 2**64 - 1])
@pytest.mark.parametrize("guarantee", GUARANTEES)
@pytest.mark.parametrize("n", [1, 8, 29])
def test_every_answer_is_that_of_the_synchronous_client_bit_by_bit(shared_server, rows, n, guarantee, smoothing_seed):
    """One request or several of at most eight rows, as a call or in a stream."""
    options = {"alpha": 0.1, "guarantee": guarantee, "confidence": 0.75, "smoothing_seed": smoothing_seed}
    x = rows(n) / 7

    async def both(client):
        call = await client.score(x, **options, num_neighbors=3)
        return [call, *await collect(client.score_stream([x], **options, num_neighbors=3))]

    with shared_server.client() as client:
        expected = client.score(x, **options, num_neighbors=3)

    assert [bits(s) for s in run(shared_server, both)] == [bits(expected)] * 2


def test_large_rows_are_split_by_bytes(start, rows):
    """No request exceeds max_message_bytes, and all rows come back in order."""
    running = start(StandIn(), max_message_bytes=1024)

    scores = run(running, lambda c: c.score(rows(500)), detector="standin", version="1")

    assert bits(scores) == bits(StandIn().score(rows(500)))
    assert running.sample("softkin_request_rows_count") >= 500 * 24 / 1024


def test_a_row_larger_than_a_message_is_refused_with_the_limit(start):
    """No split can help, so the client says which limit to raise."""
    with pytest.raises(InvalidInputError, match=r"one row has 1200 bytes.*= 1024; raise"):
        run(start(StandIn(), max_message_bytes=1024), lambda c: c.score(np.zeros((2, 300), np.float32)))


def test_many_tasks_each_get_their_own_rows(start, rows):
    """Results never cross between concurrent requests on one client."""
    inputs = [rows(1 + i % 5, offset=1000 * i) for i in range(100)]

    answers = run(start(StandIn(), workers=4), lambda c: asyncio.gather(*map(c.score, inputs)))

    assert [bits(s) for s in answers] == [bits(StandIn().score(x)) for x in inputs]


def test_descriptions_drift_and_health_are_those_of_the_synchronous_client(server):
    """The other calls."""

    async def ask(client):
        calls = (client.detector_info, client.detectors, client.drift, client.check_health, client.healthy)
        return [await call() for call in calls]

    with server.client() as client:
        expected = [client.detector_info(), client.detectors(), client.drift(), True, True]

    assert list(map(repr, run(server, ask))) == list(map(repr, expected))  # drift's has arrays


def test_a_server_that_starts_is_not_healthy_yet(start):
    """It lives, but does not score."""
    running = start(StandIn(), ready=False)

    before = run(running, lambda c: c.check_health())
    running.server.make_ready()

    assert (before, run(running, lambda c: c.check_health())) == (False, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": "most"}, "guarantee: got 'most'; allowed: marginal"),
        ({"smoothing_seed": -1}, r"smoothing_seed: got -1; must lie in \[0, 2\^64\)"),
        ({"num_neighbors": -1}, "num_neighbors: got -1; must be 0 or more"),
    ],
)
def test_what_cannot_travel_is_refused_before_sending(shared_server, rows, options, message):
    """By calls and streams."""
    for use in (lambda c: c.score(rows(1), **options), lambda c: collect(c.score_stream([rows(1)], **options))):
        with pytest.raises(InvalidInputError, match=message):
            run(shared_server, use)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (np.zeros((0, 2, 3), np.float32), {}, InvalidInputError, "there are no rows"),
        (np.zeros((1, 2, 3), np.uint8), {}, InvalidInputError, "^inputs: dtype is uint8, this detector takes float32"),
        (np.zeros((1, 2, 3), np.str_), {}, InvalidInputError, "cannot travel; convert to one of: float32"),
        (BAD, {}, InvalidInputError, "row 0 has NaN or infinity"),
        (np.zeros((1, 2, 3), np.float32), {"detector": "nope"}, NotFoundError, "loaded: standin version 1"),
        (np.zeros((1, 2, 3), np.float32), {"label": "beta"}, NotFoundError, "beta"),
    ],
)
def test_refusals_are_the_synchronous_clients(shared_server, x, options, error, message):
    """Type and words, of calls and streams."""
    for use in (lambda c: c.score(x), lambda c: collect(c.score_stream([x]))):
        with pytest.raises(error, match=message) as found:
            run(shared_server, use, **options)
        with shared_server.client(**options) as client, pytest.raises(error) as expected:
            client.score(x)

        assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))


def test_a_fault_of_the_server_is_a_plain_softkin_error(start, rows):
    """INTERNAL -> SoftkinError, with the log id to quote."""
    running = start(StandIn(failure=ValueError("secret")))
    for use in (lambda c: c.score(rows(1)), lambda c: collect(c.score_stream([rows(1)]))):
        with pytest.raises(SoftkinError, match="INTERNAL: internal error; log id") as e:
            run(running, use)

        assert type(e.value) is SoftkinError


def test_no_server_is_an_unavailable_error_and_not_healthy(start, rows):
    """UNAVAILABLE -> UnavailableError that names the target."""
    running = start(StandIn())
    running.server.stop_now()

    assert run(running, lambda c: c.healthy(), timeout_seconds=5) is False
    for use in (lambda c: c.score(rows(1)), lambda c: collect(c.score_stream([rows(1)]))):
        with pytest.raises(UnavailableError, match=running.target):
            run(running, use, timeout_seconds=5)


def test_the_deadline_is_an_unavailable_error(start, rows, gate):
    """As for the synchronous client: gRPC's deadline and not asyncio's."""
    with pytest.raises(UnavailableError, match="Deadline Exceeded"):
        run(start(StandIn(gate=gate)), lambda c: c.score(rows(1)), timeout_seconds=0.3)


def test_unavailable_is_retried_and_nothing_else(start):
    """A server that is starting gets 4 attempts."""
    running = start(StandIn(), ready=False)

    async def score(client):
        client._limits = replace(proto_to_limits(pb.Limits()), max_rows=20_000, max_message_bytes=1 << 20)
        await client.score(np.zeros((20_000, 2, 3), np.float32))

    with pytest.raises(UnavailableError, match="the server is starting"):
        run(running, score)

    running.until(lambda: running.sample("grpc_server_handled_total", grpc_code="UNAVAILABLE", **UNARY) == 4)
    assert running.sample("grpc_server_started_total", **UNARY) == 4


def test_an_overload_says_how_long_to_wait(start, rows, gate):
    """Of calls, where the delay is a trailer, and of streams, where it is a detail; neither is retried."""
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=4, max_pending_rows=4)

    async def overload(client):
        first = asyncio.create_task(client.score(rows(4)))
        await asyncio.to_thread(detector.entered.acquire, timeout=20)
        found = []
        for refused in (client.score(rows(1)), collect(client.score_stream([rows(1)]))):
            with pytest.raises(OverloadedError, match="4 rows are pending, 1 more would exceed") as e:
                await refused
            found.append(e.value.retry_after_seconds)
        gate.set()
        return [*found, len(await first)]

    assert run(running, overload) == [0.5, 0.5, 4]
    assert running.sample("softkin_rejected_total", reason="queue_full") == 2


def test_what_no_waiting_can_help_is_no_overload(start, rows):
    """A message over the server's limit, from a client that does not know it."""

    async def ignorant(client, use):
        client._limits = replace(await client._known_limits(), max_message_bytes=1 << 20)
        await use(client)

    running = start(StandIn(), max_message_bytes=4096)
    for use in (lambda c: c.score(rows(250)), lambda c: collect(c.score_stream([rows(250)]))):
        with pytest.raises(InvalidInputError, match="max_message_bytes = 4096: send several smaller ones"):
            run(running, lambda c, use=use: ignorant(c, use))


def test_tls_and_tokens_let_in_as_they_do_the_synchronous_client(start, rows, tmp_path):
    """With the authority and a token; not without either."""
    ca, tokens = Authority(tmp_path), tmp_path / "tokens"
    tokens.write_text(TOKEN)
    running = start(StandIn(), **ca.issue("server"), token_file=tokens)

    async def both(client):
        return [await client.score(rows(29)), *await collect(client.score_stream([rows(29)]))]

    found = run(running, both, tls_ca=ca.file, token=TOKEN)

    assert [bits(scores) for scores in found] == [bits(StandIn().score(rows(29)))] * 2
    for use in (lambda c: c.score(rows(1)), lambda c: collect(c.score_stream([rows(1)]))):
        with pytest.raises(AuthenticationError, match=running.target):
            run(running, use, tls_ca=ca.file)
    assert run(running, lambda c: c.healthy(), timeout_seconds=5) is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": TOKEN}, "token: would travel to softkin.example:1 in plaintext"),
        ({"tls_server_name": "a"}, "tls_server_name: given without tls_ca"),
        ({"tls_ca": "/none"}, r"tls_ca: /none: cannot be read \(No such file"),
    ],
)
def test_wrong_options_are_refused_before_it_connects(options, message):
    """At construction, as by the synchronous client."""

    async def construct():
        AsyncClient("softkin.example:1", **options)

    with pytest.raises(InvalidInputError, match=message):
        asyncio.run(construct())


def test_a_client_belongs_to_a_running_event_loop():
    """Otherwise its calls would wait for a loop that nobody runs."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient("localhost:1")


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("kind", ["call", "stream"])
def test_a_task_that_is_cancelled_cancels_its_call_on_the_server(start, rows, gate, kind, how):
    """It ends as cancelled, or with the timeout's own error; the server stops computing, and the client goes on."""
    detector = StandIn(gate=gate)
    running = start(detector)

    async def leave(client):
        waiting = client.score(rows(1)) if kind == "call" else collect(client.score_stream([rows(1)]))
        if how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await waiting
        else:
            task = asyncio.create_task(waiting)
            await asyncio.to_thread(detector.entered.acquire, timeout=20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.to_thread(running.until, lambda: cancelled(running))
        gate.set()
        return len(await client.score(rows(2)))

    assert run(running, leave) == 2


@pytest.mark.parametrize("kind", ["call", "stream"])
def test_closing_the_client_is_no_cancellation_of_the_tasks_that_wait(start, rows, gate, kind):
    """They get an error of softkin's, as threads do."""
    detector = StandIn(gate=gate)

    async def close(client):
        waiting = client.score(rows(1)) if kind == "call" else collect(client.score_stream([rows(1)]))
        task = asyncio.create_task(waiting)
        await asyncio.to_thread(detector.entered.acquire, timeout=20)
        await client.close()
        await task

    with pytest.raises(SoftkinError, match="CANCELLED: the client was closed"):
        run(start(detector), close)
