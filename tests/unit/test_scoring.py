"""What the one way of all requests gives back when it does not score."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from softkin.converters import ScoreCall
from softkin.drift_watches import DriftWatches
from softkin.errors import ExpiredError, UnavailableError, UnmeetableError
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
def counted():
    """What the metrics show."""
    return CollectorRegistry()


@pytest.fixture
def path(counted):
    """Of a server without a port."""
    metrics = Metrics(counted, version="0")
    found = ScoringPath(ServerSettings(bundles=["x"], workers=1), Registry(), metrics, DriftWatches())
    yield found
    found.close()


@pytest.fixture
def held():
    """A detector that computes once its gate is open: at the end of the test at the latest, or the path would wait."""
    detector = StandIn(gate=threading.Event())
    yield detector
    detector.gate.set()


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


def test_a_deadline_that_has_passed_in_the_queue_saves_the_work(path, held):
    """Also where gRPC has not said yet that the call has ended: it has much to say while many calls end."""
    first = path.submit(held, request(), Call())
    assert held.entered.acquire(timeout=10)

    late = path.submit(held, request(), Call(remaining=0.0))
    held.gate.set()

    with pytest.raises(ExpiredError):
        late.wait()
    first.wait()
    assert held.rows_scored == 2


def test_a_deadline_that_what_is_pending_leaves_no_time_for_is_refused_at_once(path, held):
    """With how long it would take; a batch of the same size has shown that. It takes no place from others."""
    held.gate.set()
    held.batch_seconds = 0.1
    path.submit(held, request(), Call()).wait()
    held.gate.clear()
    waiting = [path.submit(held, request(), Call())]
    for _ in range(2):  # the only worker has taken note of the first before it takes the second
        assert held.entered.acquire(timeout=10)

    with pytest.raises(UnmeetableError, match=r"would take about 0\.\d+ s, its deadline is in 0\.05 s") as e:
        path.submit(held, request(), Call(remaining=0.05))
    assert path.admission.pending_requests == 1
    waiting += [path.submit(held, request(), Call(remaining=r)) for r in (60.0, 1e18)]
    held.gate.set()

    assert e.value.retry_after_seconds >= 0.1
    assert [len(ticket.wait()) for ticket in waiting] == [2, 2, 2]


def test_gauges_show_what_is_pending_and_what_is_queued(path, counted, held):
    """One batch is computed, and one request waits for it; each of two rows."""
    tickets = [path.submit(held, request(), Call())]
    assert held.entered.acquire(timeout=10)
    tickets.append(path.submit(held, request(), Call()))

    shown = {
        name: counted.get_sample_value(f"softkin_{name}")
        for name in ("pending_requests", "pending_rows", "pending_bytes", "queued_rows")
    }
    held.gate.set()

    assert [len(ticket.wait()) for ticket in tickets] == [2, 2]
    assert shown == {"pending_requests": 2, "pending_rows": 4, "pending_bytes": 96, "queued_rows": 2}


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
