"""A stream at the moments that a caller cannot bring about at will."""

from __future__ import annotations

import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from softkin import streaming
from softkin.errors import CancelledError, InvalidInputError, OverloadedError, UnmeetableError
from softkin.metrics import Metrics
from softkin.streaming import LOOK_UP_SECONDS, Streams, _Stream


class Context:
    """Of a call whose caller has gone before, or goes when `leave` is called."""

    def __init__(self, gone):
        self.gone, self.leave = gone, None

    def add_callback(self, callback):
        """False where it would never be called."""
        self.leave = callback
        return not self.gone

    def is_active(self):
        """Nobody waits."""
        return False

    def invocation_metadata(self):
        """None."""
        return ()


def waits_for_the_end(stream, work, begun):
    """Whether `work`, in a thread of its own, waits once it has begun, and ends when the stream does."""
    working = threading.Thread(target=work, daemon=True)
    working.start()
    assert begun.wait(20)
    working.join(0.05)
    waited = working.is_alive()
    stream._end()
    working.join(20)
    return waited and not working.is_alive()


@pytest.mark.parametrize("gone", [True, False])
def test_a_stream_whose_caller_has_gone_ends_as_such_and_not_well(gone):
    """Before its first message is read, or while the next is awaited."""
    context = Context(gone)

    def requests():
        if not gone:
            context.leave()
        yield from ()

    with pytest.raises(CancelledError):
        next(_Stream(None, None, 1, context).answers(requests()))


def test_the_end_of_a_stream_ends_the_wait_for_its_next_message():
    """Whatever the thread that reads is busy with meanwhile."""
    context, go_on, read = Context(gone=False), threading.Event(), []

    def requests():
        context.leave()
        go_on.wait(20)
        read.append("all")
        yield from ()

    with pytest.raises(CancelledError):
        next(_Stream(None, None, 1, context).answers(requests()))

    assert not read
    go_on.set()


def test_one_stream_at_a_time_takes_its_place_and_gives_it_back():
    """Two that looked at once would both take the last one, and a place that is lost would never come back."""
    asked, go_on, ends = threading.Event(), threading.Event(), []

    class Waiting(Context):
        def add_callback(self, callback):
            asked.set()
            return go_on.wait(20) and super().add_callback(callback)

    def answer():
        try:
            next(streams.answer(iter(()), Waiting(gone=True)))
        except CancelledError as e:
            ends.append(e)

    metrics = Metrics(CollectorRegistry(), version="0")
    streams = Streams(None, metrics, max_streams=1, window=1)
    answering = threading.Thread(target=answer)
    with streams._lock:
        answering.start()
        early = asked.wait(0.05)
    assert asked.wait(20)
    with pytest.raises(OverloadedError, match="1 streams are open"):
        next(streams.answer(iter(()), Context(gone=True)))
    with streams._lock:
        go_on.set()
        answering.join(0.05)
        left = not answering.is_alive()
    answering.join(20)

    assert (early, left, len(ends)) == (False, False, 1)
    assert metrics.registry.get_sample_value("softkin_streams") == 0


def test_room_that_was_made_while_the_gate_was_asked_is_not_waited_for():
    """Its departure has been: the next one may be the last for long."""
    waits = []
    admission = SimpleNamespace(departures=0, await_departure=lambda *arguments: waits.append(arguments))

    def submit(detector, call, context):
        admission.departures += 1
        if admission.departures == 1:
            raise OverloadedError("full", 0.5)
        return "ticket"

    stream = _Stream(SimpleNamespace(admission=admission, submit=submit), None, 1, Context(gone=False))

    assert stream._enter(None, None) == "ticket"
    assert waits == [(0, LOOK_UP_SECONDS)]


def test_what_cannot_be_done_in_time_is_refused_at_once():
    """No wait would help: room is not what it lacks."""
    admission = SimpleNamespace(departures=0)

    def submit(detector, call, context):
        raise UnmeetableError("too late", 0.5)

    stream = _Stream(SimpleNamespace(admission=admission, submit=submit), None, 1, Context(gone=False))

    with pytest.raises(UnmeetableError, match="too late"):
        stream._enter(None, None)


def test_the_end_of_a_stream_ends_the_wait_for_its_own_requests(monkeypatch):
    """Nothing else does, neither time nor departures of others."""
    monkeypatch.setattr(streaming, "PATIENCE_SECONDS", 0.0)
    asked, times, ends = threading.Event(), [], []

    def submit(detector, call, context):
        times.append(time.monotonic())
        asked.set()
        raise OverloadedError("full", 0.5)

    path = SimpleNamespace(admission=SimpleNamespace(departures=0), submit=submit, cancel=lambda ticket: None)
    stream = _Stream(path, None, 1, Context(gone=False))
    stream._tickets.append("waits")

    def enter():
        try:
            stream._enter(None, None)
        except OverloadedError as e:
            ends.append(str(e))

    assert waits_for_the_end(stream, enter, asked)
    assert ends == ["full"]
    assert len(times) == 2  # before the wait and behind it: no processor is busy with asking


def test_the_end_of_a_stream_ends_the_wait_for_its_window():
    """The thread that reads ahead must not stay, whoever takes the answers."""
    received = threading.Event()
    metrics = SimpleNamespace(messages=lambda *labels, **counts: received.set())

    def requests():
        raise InvalidInputError("request", "unfit")
        yield

    stream = _Stream(None, metrics, 0, Context(gone=False))

    assert waits_for_the_end(stream, partial(stream._read, requests()), received)


def test_a_stream_that_gets_no_thread_may_come_again(monkeypatch):
    """No fault of the server: where a system has no more threads, some end soon."""

    def no_more(thread):
        raise RuntimeError("can't start new thread")

    stream = _Stream(None, None, 1, Context(gone=False))
    monkeypatch.setattr(threading.Thread, "start", no_more)

    with pytest.raises(OverloadedError, match="no thread is left for another stream; retry after 1 s, or send") as e:
        next(stream.answers(iter(())))

    assert e.value.retry_after_seconds == 1
