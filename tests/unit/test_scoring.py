"""What the one way of all requests gives back when it does not score."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from softkin.converters import ScoreCall
from softkin.drift_watches import DriftWatches
from softkin.errors import ExpiredError, UnavailableError
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scoring import ScoringPath
from softkin.settings import ServerSettings
from standin import SHAPE, StandIn


class Call:
    """A gRPC call that ends when the test says so."""

    def __init__(self, remaining=1e18):
        self.ended = []
        self._remaining = remaining

    def time_remaining(self):
        """Seconds to the deadline; where there is none, a time too large for any clock."""
        return self._remaining

    def add_callback(self, callback):
        """Ask to be told of the end."""
        self.ended.append(callback)
        return True


@pytest.fixture
def path():
    """Of a server without a port."""
    metrics = Metrics(CollectorRegistry(), version="0")
    found = ScoringPath(ServerSettings(bundles=["x"], workers=1), Registry(), metrics, DriftWatches())
    yield found
    found.close()


def request():
    """Two rows."""
    return ScoreCall(np.zeros((2, *SHAPE), np.float32), None, None, None, None, 0)


def test_a_request_that_a_closed_batcher_refuses_leaves_the_gate_once(path):
    """The call's own end comes on top: pending counts must not fall below 0."""
    path.close()
    call = Call()

    with pytest.raises(UnavailableError, match="the server is stopping"):
        path.score(StandIn(), request(), call)
    for ended in call.ended:
        ended()

    gate = path.admission
    assert (gate.pending_rows, gate.pending_bytes, gate.pending_requests) == (0, 0, 0)


def test_a_deadline_that_has_passed_in_the_queue_saves_the_work(path):
    """Also where gRPC has not said yet that the call has ended: it has much to say while many calls end."""
    detector = StandIn(gate=threading.Event())
    first = path.submit(detector, request(), Call())
    assert detector.entered.acquire(timeout=10)

    late = path.submit(detector, request(), Call(remaining=0.0))
    detector.gate.set()

    with pytest.raises(ExpiredError):
        late.wait()
    first.wait()
    assert detector.rows_scored == 2


def test_streams_may_be_slow_to_read_and_unary_callers_are_not(path):
    """What a stream has not read yet must not hold what others got with it: each stream is told from the others."""
    first, second = Call(), Call()
    tickets = [path.submit(StandIn(), request(), call) for call in (first, first, second)]
    for ticket in tickets:
        ticket.wait()

    assert tickets[0].reader == tickets[1].reader != tickets[2].reader
    assert None not in (tickets[0].reader, tickets[2].reader)
    assert path._admit(StandIn(), request(), first).reader is None


def test_a_request_that_was_queued_when_memory_ran_out_leaves_the_gate_once(path, monkeypatch):
    """Its sender is told, and nobody waits for it: were it computed all the same, it would leave a second time."""

    def fails(condition, n=1):
        raise MemoryError("none left")

    with monkeypatch.context() as short:
        short.setattr(threading.Condition, "notify", fails)
        with pytest.raises(MemoryError):
            path.submit(StandIn(), request(), Call())
    path.close()

    gate = path.admission
    assert (gate.pending_rows, gate.pending_bytes, gate.pending_requests) == (0, 0, 0)
