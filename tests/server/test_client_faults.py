"""What an application meets in the long run: closed clients, servers that fall silent, sources that give up."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from event_loops import run
from softkin import client_channel
from softkin.admin_client import AdminClient
from softkin.async_client import AsyncClient
from softkin.client import Client
from softkin.client_errors import answer_error
from softkin.errors import InvalidInputError, SoftkinError, UnavailableError
from standin import StandIn


@pytest.mark.parametrize(
    "wrong", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=["exit", "interrupt", "generator"]
)
def test_a_source_that_ends_the_program_ends_the_stream(shared_server, rows, wrong):
    """It is asked in a thread of gRPC's own, which such an exception would end without a word to the reader."""

    def source():
        yield rows(1)
        raise wrong

    with shared_server.client() as client:
        answers = client.score_stream(source())

        assert len(next(answers)) == 1
        with pytest.raises(type(wrong)):
            next(answers)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_ends_the_program_comes_out_of_an_asynchronous_stream_too(shared_server, rows, asynchronous):
    """Not gRPC's account of it, whichever kind of source it is."""

    def source():
        yield rows(1)
        raise SystemExit(3)

    async def asynchronous_source():
        for x in source():
            yield x

    async def use(client):
        return [s async for s in client.score_stream(asynchronous_source() if asynchronous else source())]

    with pytest.raises(SystemExit, match="3"):
        run(shared_server, use)


def test_a_server_that_falls_silent_ends_a_stream(serve, rows, monkeypatch):
    """No deadline bounds a stream, and a machine that has lost its power closes no connection."""
    monkeypatch.setattr(client_channel, "KEEPALIVE_SECONDS", 2)
    monkeypatch.setattr(client_channel, "KEEPALIVE_TIMEOUT_SECONDS", 2)
    process = serve()

    def source():
        while True:
            yield rows(1)

    with process.client() as client:
        answers = client.score_stream(source())
        next(answers)
        process.popen.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            list(answers)
        assert process.popen.poll() is None  # it has not been killed meanwhile


@pytest.mark.parametrize(
    "use",
    [
        lambda c, x: c.score(x),
        lambda c, x: list(c.score_stream([x])),
        lambda c, x: c.detector_info(),
        lambda c, x: c.drift(),
        lambda c, x: c.check_health(),
    ],
    ids=["score", "stream", "info", "drift", "health"],
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_closed_client_says_so(shared_server, rows, use, used):
    """As an error of softkin's, whatever was called before."""
    client = shared_server.client()
    if used:
        client.score(rows(1))
    client.close()

    with pytest.raises(SoftkinError, match="the client is closed; make another one"):
        use(client, rows(1))
    assert not client.healthy()
    client.close()


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_who_waits_for_a_client_that_another_thread_closes_is_told_so(start, rows, gate, kind):
    """gRPC says that its stream was removed, or its channel closed."""
    detector = StandIn(gate=gate)
    client = start(detector).client()
    with ThreadPoolExecutor(1) as pool:
        calls = {"unary": lambda: client.score(rows(1)), "stream": lambda: list(client.score_stream([rows(1)]))}
        waiting = pool.submit(calls[kind])
        assert detector.entered.acquire(timeout=20)

        client.close()

        with pytest.raises(SoftkinError, match=r": CANCELLED: the client was closed$"):
            waiting.result(timeout=20)


@pytest.mark.parametrize("allowed", [0, 1])
def test_a_client_that_gets_no_thread_for_a_stream_says_so(start, rows, monkeypatch, allowed):
    """gRPC would let every later stream of it wait for ever, and closing it too."""
    running = start(StandIn())
    client, start_thread, begun = running.client(), threading.Thread.start, []
    client.score(rows(1))

    def limit(thread):
        if len(begun) == allowed:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start_thread(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", limit)
        with pytest.raises(SoftkinError, match=r"no thread is left for a stream \(can't start new thread\); end"):
            list(client.score_stream([rows(1)]))

    assert len(list(client.score_stream([rows(1)]))) == 1
    running.until(lambda: running.sample("softkin_streams") == 0)
    for thread in begun:
        thread.join(20)
        assert not thread.is_alive()


def test_a_client_that_is_closed_while_others_use_it_raises_errors_of_softkin_alone(shared_server, rows):
    """Whenever that is; and nobody waits for an answer that does not come."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def use(client, call):
        while True:
            try:
                call(client)
            except SoftkinError as e:
                return e

    calls = [lambda c: c.score(rows(1)), lambda c: list(c.score_stream([rows(1)])), lambda c: c.check_health()]
    try:
        with ThreadPoolExecutor(6) as pool:
            for _ in range(40):
                client = shared_server.client()
                client.score(rows(1))
                using = [pool.submit(use, client, call) for call in calls * 2]
                client.close()
                assert all(one.result(timeout=20) for one in using)
    finally:
        sys.setswitchinterval(before)


def test_a_closed_asynchronous_client_says_so_too(shared_server, rows):
    """In the same words."""

    async def use(client):
        await client.score(rows(1))
        await client.close()
        found = []
        for call in (client.score(rows(1)), client.detector_info(), anext(client.score_stream([rows(1)]))):
            with pytest.raises(SoftkinError, match="the client is closed; make another one"):
                await call
            found.append(await client.healthy())
        return found

    assert run(shared_server, use) == [False] * 3


def test_an_asynchronous_client_belongs_to_its_loop(shared_server, rows):
    """In another loop gRPC would speak of closed loops and futures, and leave a coroutine that nobody awaits."""

    async def make():
        return AsyncClient(shared_server.target)

    async def use(client):
        for call in (client.score(rows(1)), client.healthy(), anext(client.score_stream([rows(1)]))):
            with pytest.raises(RuntimeError, match="belongs to another event loop; make one in this loop"):
                await call

    asyncio.run(use(asyncio.run(make())))


def test_a_client_learns_the_limits_of_a_server_that_has_followed_another(server, rows):
    """What the first one allowed is refused once, not for ever."""
    with server.client() as client:
        for use in (client.score, lambda x: next(client.score_stream([x]))):
            client._limits = replace(client._known_limits(), max_rows=100)
            with pytest.raises(InvalidInputError, match="at most max_rows = 8"):
                use(rows(9))

            assert len(use(rows(9))) == 9


def test_an_asynchronous_client_learns_them_too(server, rows):
    """By calls and streams."""

    async def use(client):
        for call in (client.score, lambda x: anext(client.score_stream([x]))):
            client._limits = replace(await client._known_limits(), max_rows=100)
            with pytest.raises(InvalidInputError, match="at most max_rows = 8"):
                await call(rows(9))
            assert len(await call(rows(9))) == 9

    run(server, use)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_timeout_that_no_clock_can_hold_is_refused(seconds):
    """With infinity, or a few hundred years, gRPC would find every deadline passed."""
    with pytest.raises(InvalidInputError, match=r"timeout_seconds: got .*; must be more than 0 and at most 1000000000"):
        Client("localhost:1", timeout_seconds=seconds)


@pytest.mark.parametrize("seconds", ["30", None, [30]])
def test_a_timeout_is_a_number(seconds):
    """Text of a file of settings, for instance, is none yet."""
    with pytest.raises(InvalidInputError, match=r"^timeout_seconds: got .*; must be a number, more than 0 and at most"):
        Client("localhost:1", timeout_seconds=seconds)


def test_the_longest_timeout_is_one(shared_server, rows):
    """What is allowed works."""
    with shared_server.client(timeout_seconds=1_000_000_000) as client:
        assert len(client.score(rows(1))) == 1


def test_a_deadline_that_passes_names_the_remedy(start, rows, gate):
    """Which argument to change."""
    with (
        start(StandIn(gate=gate)).client(timeout_seconds=0.3) as client,
        pytest.raises(UnavailableError, match=r"allow more time \(timeout_seconds\)"),
    ):
        client.score(rows(1))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "target: is empty; give HOST:PORT"),
        ("localhost:65536", r"target: got 'localhost:65536'; a port must lie in 0 to 65535"),
        ("dns:///localhost:-1", "a port must lie in 0 to 65535"),
        ("ipv4:127.0.0.1:65536,127.0.0.1:50051", "a port must lie in 0 to 65535"),
        ("a:50051,b:50051", "got 'a:50051,b:50051'; several servers are ipv4:ADDRESS:PORT,ADDRESS:PORT, without names"),
        ("ipv4:10.0.0.1:50051,b:50051", "several servers are ipv4:ADDRESS:PORT,ADDRESS:PORT, without names"),
    ],
)
def test_a_target_that_leads_elsewhere_is_refused(target, message):
    """gRPC counts ports modulo 65536, and says nothing."""
    with pytest.raises(InvalidInputError, match=message):
        Client(target)


def test_a_port_where_nobody_listens_names_the_remedy(rows):
    """Taken by a socket that does not listen, so that nobody else can have it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(target) as client, pytest.raises(UnavailableError) as e:
            client.score(rows(1))

    assert str(e.value).startswith(f"{target}: ")
    assert str(e.value).endswith("; no server listens there: start one, or give its HOST:PORT")


def test_a_name_that_cannot_be_resolved_names_the_remedy(rows):
    """An address of the web is the commonest one."""
    with Client("http://softkin:50051") as client, pytest.raises(UnavailableError) as e:
        client.score(rows(1))

    assert str(e.value).endswith("; give HOST:PORT, with a name that this machine can resolve")


def test_the_port_of_the_metrics_names_the_remedy(shared_server, rows):
    """The two stand side by side in the log; gRPC speaks of frames."""
    target = f"127.0.0.1:{shared_server.server.metrics_port}"
    with Client(target) as client, pytest.raises(UnavailableError) as e:
        client.score(rows(1))

    assert str(e.value).endswith("; no gRPC server answers there: give the port of --port, not that of --metrics-port")


@pytest.mark.parametrize("target", ["::1", "[::1]:65535", "unix:/a:b", "ipv4:127.0.0.1:1,127.0.0.1:2", "localhost"])
def test_other_targets_are_grpcs_own(target):
    """An IPv6 address is no port; that nobody answers there is found by a call."""
    with Client(target, timeout_seconds=0.2) as client:
        assert not client.healthy()


@pytest.mark.parametrize("field", ["detector", "version", "label"])
def test_names_are_text(field):
    """A version looks like a number, and is none."""
    with pytest.raises(InvalidInputError, match=f"^{field}: got 1; must be text"):
        Client("localhost:1", **{field: 1})

    async def make():
        AsyncClient("localhost:1", **{field: 1})

    with pytest.raises(InvalidInputError, match=f"^{field}: got 1; must be text"):
        asyncio.run(make())


def test_whatever_an_operator_names_is_text():
    """In every call, before it is one: the messages of gRPC's fields name none of them."""
    three = ("detector", "version", "label")
    with AdminClient("localhost:1") as admin:
        for call, fields in ((admin.unload, three[:2]), (admin.set_label, three), (admin.remove_label, three[::2])):
            for field in fields:
                with pytest.raises(InvalidInputError, match=f"^{field}: got 1; must be text"):
                    call(**{**dict.fromkeys(fields, "x"), field: 1})
        with pytest.raises(InvalidInputError, match=r"^path: got 1; must be text"):
            admin.load(1)
        with pytest.raises(InvalidInputError, match=r"^labels: got 1; must be text"):
            admin.load("x", ["x", 1])


@pytest.mark.parametrize("token", [b"secret", 5, ["secret"]], ids=["bytes", "number", "list"])
def test_a_token_is_text(token):
    """What is read from a file in binary mode is none; the message does not show it."""
    with pytest.raises(InvalidInputError) as caught:
        Client("localhost:1", token=token)

    assert str(caught.value) == f"token: is of type {type(token).__name__}; must be text"


@pytest.mark.parametrize("field", ["target", "tls_server_name", "detector", "version", "label"])
def test_text_is_what_utf_8_can_spell(field):
    """File names and command lines may hold other bytes, which Python has as surrogates; gRPC fails on them."""
    arguments = {"target": "localhost:1", field: "\udcff"}

    with pytest.raises(InvalidInputError, match=rf"^{field}: got '\\udcff'; must be text that UTF-8 can spell"):
        Client(**arguments)


def test_an_unavailable_server_says_when_to_come_back():
    """A version that is being replaced states its delay, as an overload does."""
    status = Status(code=14, message="being replaced")
    status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=2)))

    error = answer_error(status, "a:1")

    assert (type(error), error.retry_after_seconds) == (UnavailableError, 2.0)


def test_an_array_is_sent_as_it_is_whatever_its_layout(shared_server, rows):
    """Fortran order, strides, big-endian, read-only and nested sequences of rows give the same answer."""
    x = rows(6)
    frozen = x.copy()
    frozen.flags.writeable = False
    layouts = [np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x.astype(">f4"), frozen, list(x), tuple(x)]

    with shared_server.client() as client:
        expected = client.score(x).p_value.tolist()

        assert [client.score(layout).p_value.tolist() for layout in layouts] == [expected] * 6


def test_a_port_that_does_not_score_is_told_from_a_fault(operated):
    """The admin port, for instance, or somebody else's server."""
    with (
        Client(f"127.0.0.1:{operated.server.admin_port}") as client,
        pytest.raises(SoftkinError, match=r"UNIMPLEMENTED: .*; is it the port of a softkin server that scores"),
    ):
        client.detector_info()
