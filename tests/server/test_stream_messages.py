"""How answers of a stream travel: together when they are ready together, and never in messages too large."""

from __future__ import annotations

import threading

import pytest

from softkin import streaming
from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

LABELS = {
    "grpc_type": "BIDI_STREAM",
    "grpc_service": "softkin.v1.OutlierService",
    "grpc_method": "ScoreStream",
}


def message(x, version=""):
    """One request of a stream."""
    return pb.ScoreStreamRequest(request=pb.ScoreRequest(version=version, inputs=array_to_tensor(x)))


@pytest.fixture
def ready_together(start, gate):
    """Responses of a stream whose requests were all there before the first was answered, but perhaps for the last."""

    def run(messages):
        running = start(StandIn(gate=gate), workers=1, max_pending_rows=1 << 20, max_batch_rows=1 << 16)
        left = threading.Event()

        def sender():
            yield from messages
            left.wait(60)

        stream = running.stub.ScoreStream(sender(), timeout=60)
        running.until(lambda: running.server.pending_requests == len(messages))
        gate.set()
        found, answers = [], 0
        while answers < len(messages):
            found.append(next(stream))
            answers += len(found[-1].answers)
        left.set()
        assert list(stream) == []
        assert running.sample("grpc_server_msg_sent_total", **LABELS) == len(found)
        return found

    return run


def test_answers_that_are_ready_together_travel_together(ready_together, rows):
    """A message costs more than a small answer."""
    found = ready_together([message(rows(1, i)) for i in range(12)])

    scores = [a.response.outlier_score[0] for r in found for a in r.answers]
    assert scores == [float(rows(1, i).sum()) for i in range(12)]
    assert len(found) <= 3  # the first was computed alone, and the last may have come too late


def test_an_answer_message_is_sent_when_it_is_large_enough(ready_together, rows, monkeypatch):
    """Counted over all answers in it, and anew for each message."""
    monkeypatch.setattr(streaming, "MAX_ANSWER_BYTES", 600)

    found = ready_together([message(rows(1, i)) for i in range(12)])

    assert all(sum(a.ByteSize() for a in r.answers[:-1]) < 600 for r in found)
    assert len(found) >= 3


def test_large_answers_stay_below_what_clients_take(ready_together, rows):
    """Four megabytes, unless they ask for more."""
    found = ready_together([message(rows(4096)) for _ in range(12)])

    sizes = [r.ByteSize() for r in found]
    assert sum(sizes) > 1.5 * 2**20
    assert max(sizes) < 1.5 * 2**20


def test_an_answer_does_not_wait_for_the_next_one(start, rows, gate):
    """The caller gets what is ready, however long the device takes for what is behind it."""
    first, slow = StandIn(gate=threading.Event()), StandIn(version="2", gate=gate)
    running = start(first, slow, workers=2)
    stream = running.stub.ScoreStream(iter([message(rows(1), version) for version in "122"]), timeout=10)
    running.until(lambda: running.sample("grpc_server_msg_received_total", **LABELS) == 3)  # so the second is in line

    first.gate.set()
    answered = len(next(stream).answers)
    gate.set()

    assert answered == 1
    assert sum(len(r.answers) for r in stream) == 2


@pytest.mark.parametrize(("window", "received"), [(64, 3), (1, 2)], ids=["gate", "window"])
def test_a_stream_that_is_left_while_it_waits_for_its_own_requests_ends(start, rows, gate, window, received):
    """Though none of them is ever answered: the thread that reads ahead must not stay."""
    running = start(StandIn(gate=gate), max_rows=4, max_pending_rows=8, workers=1, stream_window=window)
    stream = running.stub.ScoreStream(iter([message(rows(4, i)) for i in range(10)]), timeout=60)
    running.until(lambda: running.sample("grpc_server_msg_received_total", **LABELS) == received)

    stream.cancel()

    running.until(lambda: running.sample("softkin_streams") == 0)
    running.until(lambda: not [t for t in threading.enumerate() if t.name == "stream"])
    running.until(lambda: running.server.pending_requests == 0)


def test_a_caller_who_leaves_after_an_answer_frees_all_that_is_left(start, rows, gate):
    """The last request too, and not the answered one instead of it: nobody opens the gate."""
    first, slow = StandIn(gate=threading.Event()), StandIn(version="2", gate=gate)
    running = start(first, slow, workers=2)
    stream = running.stub.ScoreStream(iter([message(rows(1), version) for version in "1222"]), timeout=60)
    running.until(lambda: running.server.pending_requests == 4)
    first.gate.set()
    assert len(next(stream).answers) == 1

    stream.cancel()

    running.until(lambda: running.server.pending_requests == 0)
    running.until(lambda: running.sample("grpc_server_handled_total", grpc_code="CANCELLED", **LABELS) == 1)
    running.until(lambda: running.sample("softkin_rejected_total", reason="cancelled") == 1)  # the call, once


def test_a_message_without_a_request_is_told_what_it_lacks(start, rows):
    """And costs the others of its stream nothing."""
    stream = start(StandIn()).stub.ScoreStream(iter([pb.ScoreStreamRequest(), message(rows(1))]), timeout=60)

    refused, scored = [answer for response in stream for answer in response.answers]
    assert refused.error.message == "request: not set; send what to score"
    assert scored.response.outlier_score == [float(rows(1).sum())]
