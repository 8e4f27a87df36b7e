"""AsyncClient.score_stream: arrays from any source as they come, answers in turn, errors where they belong."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing, suppress

import numpy as np
import pytest

from event_loops import run
from softkin.errors import InvalidInputError, NotFoundError, SoftkinError
from softkin.settings import ServerSettings
from standin import StandIn

SOURCES = ["list", "generator", "asynchronous"]


def source(kind, arrays):
    """The arrays as an iterable of that kind; an exception among them is raised."""

    def generator():
        for x in arrays:
            if isinstance(x, BaseException):
                raise x
            yield x

    async def asynchronous():
        for x in generator():
            await asyncio.sleep(0)
            yield x

    return {"list": list(arrays), "generator": generator(), "asynchronous": asynchronous()}[kind]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_array_gets_the_answer_it_gets_alone(server, rows, kind):
    """More arrays than the server's window, some of several requests, in order; any kind of source."""
    arrays = [rows(1 + i * 7 % 29, i) for i in range(50)]

    async def score(client):
        return [s async for s in client.score_stream(source(kind, arrays), alpha=0.3, guarantee="false_discovery_rate")]

    found = run(server, score)

    assert len(arrays) > ServerSettings().stream_window
    with server.client() as client:
        expected = [client.score(x, alpha=0.3, guarantee="false_discovery_rate") for x in arrays]
    for a, b in zip(found, expected, strict=True):
        assert a.p_value.tobytes() == b.p_value.tobytes()
        assert a.is_outlier.tolist() == b.is_outlier.tolist()
        assert a.budget == b.budget


def test_a_stream_that_the_server_refuses_says_why_while_arrays_are_still_sent(start, rows):
    """gRPC for asyncio knows only that it cannot send any more, in half of the cases."""
    running = start(StandIn(), max_streams=0)

    async def refusals(client):
        found = []
        for _ in range(60):
            try:
                await anext(client.score_stream([rows(1)] * 5))
            except SoftkinError as e:
                found.append(str(e))
        return found

    said = "this server takes no streams, max_streams = 0; send unary calls"
    assert run(running, refusals) == [f"{running.target}: {said}"] * 60


def test_no_arrays_give_no_answers(server):
    """And no error."""

    async def score(client):
        return [s async for s in client.score_stream([])]

    assert run(server, score) == []


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("generator", KeyError("gone")),
        ("asynchronous", KeyError("gone")),
        ("asynchronous", asyncio.CancelledError("elsewhere")),
    ],
    ids=["generator", "asynchronous", "asynchronous, cancelled"],
)
def test_what_the_source_raises_comes_out_after_the_answers_before_it(server, rows, kind, error):
    """Not gRPC's account of it; also when what the source waited for was cancelled."""
    found = []

    async def score(client):
        try:
            async for scores in client.score_stream(source(kind, [rows(1), rows(2), error])):
                found.append(len(scores))
        except BaseException as e:
            found.append(e)

    run(server, score)

    assert found == [1, 2, error]


def test_a_source_that_is_no_iterable_is_the_callers_error(server):
    """In Python's words."""

    async def score(client):
        return [s async for s in client.score_stream(7)]

    with pytest.raises(TypeError, match="'int' object is not iterable"):
        run(server, score)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.full((2, 2, 3), np.nan, np.float32), "row 0 has NaN or infinity"), (np.array(["text"]), "cannot travel")],
    ids=["the server's", "the client's own"],
)
def test_a_bad_array_raises_in_its_turn(server, rows, kind, bad, message):
    """Those before it are answered."""
    found = []

    async def score(client):
        async for scores in client.score_stream(source(kind, [rows(1), rows(9), bad, rows(1)])):
            found.append(len(scores))

    with pytest.raises(InvalidInputError, match=message):
        run(server, score)
    assert found == [1, 9]


@pytest.mark.parametrize("kind", ["generator", "asynchronous"])
@pytest.mark.parametrize("how", ["break", "close", "error"])
def test_a_consumer_who_leaves_ends_the_call_and_the_reading(start, rows, kind, how):
    """Memory is bounded by the server's window, however fast arrays come and whoever leaves; the client goes on."""
    running = start(StandIn(), stream_window=4)
    taken = [0]

    def endless():
        while True:
            taken[0] += 1
            yield np.broadcast_to(rows(1), (4096, 2, 3)).copy()  # 100 kB: what the transport holds is a few

    async def asynchronous():
        for x in endless():
            await asyncio.sleep(0)
            yield x

    async def leave(client):
        answers = client.score_stream(endless() if kind == "generator" else asynchronous())
        if how == "close":
            async with aclosing(answers):
                await anext(answers)
        elif how == "break":
            async for _ in answers:
                break
            del answers
        else:
            with suppress(KeyError):
                async for _ in answers:
                    raise KeyError
            del answers
        await asyncio.to_thread(running.until, lambda: running.sample("softkin_streams") == 0)
        await asyncio.to_thread(running.until, lambda: running.server.pending_requests == 0)
        return len(await client.score(rows(1)))

    assert run(running, leave) == 1
    assert taken[0] < 200


def test_a_source_that_blocks_does_not_hold_the_loop(server, rows):
    """A plain iterable is asked outside the loop: other tasks go on meanwhile."""
    ready = threading.Event()

    def blocking():
        yield rows(1)
        assert ready.wait(20)
        yield rows(2)

    async def score(client):
        answers = client.score_stream(blocking())
        first = await anext(answers)
        waiting = asyncio.create_task(anext(answers))
        other = await client.score(rows(3))
        ready.set()
        second = await waiting
        await answers.aclose()
        return [len(first), len(other), len(second)]

    assert run(server, score) == [1, 3, 2]


def test_many_streams_at_once_on_one_client(start, rows):
    """Answers never cross."""
    running = start(StandIn(), workers=2)

    async def one(client, i):
        return [s.outlier_score.tolist() async for s in client.score_stream([rows(n, 100 * i) for n in (1, 2, 3)])]

    found = run(running, lambda c: asyncio.gather(*(one(c, i) for i in range(16))))

    assert found == [[StandIn().score(rows(n, 100 * i)).outlier_score.tolist() for n in (1, 2, 3)] for i in range(16)]


def test_an_unknown_detector_is_a_not_found_error(server, rows):
    """Before any array is taken."""

    async def score(client):
        return [s async for s in client.score_stream([rows(1)])]

    with pytest.raises(NotFoundError, match="loaded: standin version 1"):
        run(server, score, detector="nobody")
