"""ScoreStream: every request is answered in order, with the numbers of Score or the status that it would end with."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from softkin import streaming
from softkin.converters import array_to_tensor, proto_to_scores
from softkin.errors import DeviceError
from softkin.streaming import _Stream
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from standin import StandIn
from wire import until_the_server_ends_it

Code = grpc.StatusCode


def message(x, **fields):
    """One request of a stream."""
    return pb.ScoreStreamRequest(request=pb.ScoreRequest(inputs=array_to_tensor(x), **fields))


def answers(running, messages):
    """All answers of a stream, in order."""
    return [a for response in running.stub.ScoreStream(iter(messages), timeout=60) for a in response.answers]


@pytest.fixture
def feed():
    """An endless sender that the test drives: put messages into it, None ends it."""
    ready = threading.Condition()
    queue: list = []
    taken = [0]

    class Feed:
        def put(self, item):
            with ready:
                queue.append(item)
                ready.notify_all()

        @property
        def taken(self):
            return taken[0]

        def __iter__(self):
            return self

        def __next__(self):
            with ready:
                while not queue:
                    ready.wait()
                item = queue.pop(0)
            if item is None:
                raise StopIteration
            taken[0] += 1
            return item

    feed = Feed()
    yield feed
    feed.put(None)


def test_answers_come_in_order_with_the_numbers_of_score(server, rows):
    """Many sizes, each request's own options."""
    sent = [(rows(1 + i % 8, i), {"alpha": 0.1 + 0.01 * (i % 5), "num_neighbors": i % 3}) for i in range(200)]

    found = answers(server, [message(x, **fields) for x, fields in sent])

    assert len(found) == len(sent)
    for answer, (x, fields) in zip(found, sent, strict=True):
        scores = proto_to_scores(answer.response)
        expected = StandIn().score(x, **fields)
        assert scores.outlier_score.tolist() == expected.outlier_score.tolist()
        assert scores.class_p_values.tobytes() == expected.class_p_values.tobytes()
        assert scores.budget == expected.budget
        assert set(scores.stage_seconds) == {"decode", "queue", "infer", "calibrate", "encode"}
        assert 0 < scores.stage_seconds["decode"] < 60
        if fields["num_neighbors"]:
            assert scores.neighbors.ids.tolist() == expected.neighbors.ids.tolist()


def test_an_empty_stream_ends_well(server):
    """No request, no answer; what is counted was 0 before the first message, so that rates see that one."""
    names = "grpc_server_msg_received_total", "grpc_server_msg_sent_total"
    assert [server.sample(name, **LABELS) for name in names] == [0, 0]

    assert answers(server, []) == []

    assert [server.sample(name, **LABELS) for name in names] == [0, 0]


def test_a_bad_request_is_answered_with_its_status_and_the_stream_goes_on(server, rows):
    """Code, words and details are those of Score."""
    nan = rows(2)
    nan[1] = np.nan
    bad = {
        "nan": message(nan),
        "dtype": message(rows(1).astype(np.float64)),
        "nothing": pb.ScoreStreamRequest(),
        "rows": message(rows(9)),
        "name": message(rows(1), detector="nobody"),
        "alpha": message(rows(1), alpha=2.0),
    }
    found = answers(server, [m for name in bad for m in (message(rows(1)), bad[name])] + [message(rows(1))])

    assert [a.WhichOneof("answer") for a in found] == ["response", "error"] * len(bad) + ["response"]
    errors = dict(zip(bad, found[1::2], strict=False))
    assert {n: a.error.code for n, a in errors.items()} == {**dict.fromkeys(bad, 3), "name": 5}
    for name in ("nan", "alpha"):
        with pytest.raises(grpc.RpcError) as e:
            server.stub.Score(bad[name].request, timeout=20)
        assert errors[name].error.message == e.value.details()
    violation = error_details_pb2.BadRequest()
    assert errors["dtype"].error.details[0].Unpack(violation)
    assert violation.field_violations[0].field == "inputs"
    assert server.sample("softkin_rejected_total", reason="invalid") == 5 + 2
    assert server.sample("softkin_rejected_total", reason="not_found") == 1


def test_a_message_that_is_unfit_is_an_answer_too_and_the_stream_goes_on(start, rows):
    """Bytes that do not parse, and more of them than allowed: neither ends the stream, least of all as a success."""
    running = start(StandIn(), max_message_bytes=4096)
    fine = message(rows(1)).SerializeToString()
    call = running.channel.stream_stream("/softkin.v1.OutlierService/ScoreStream")

    sent = [fine, b"\xff\xff", fine, bytes(5000), fine]
    found = [a for m in call(iter(sent), timeout=60) for a in pb.ScoreStreamResponse.FromString(m).answers]

    assert [a.WhichOneof("answer") for a in found] == ["response", "error", "response", "error", "response"]
    assert [a.error.code for a in found if a.HasField("error")] == [
        Code.INVALID_ARGUMENT.value[0],
        Code.RESOURCE_EXHAUSTED.value[0],
    ]
    assert "max_message_bytes = 4096" in found[3].error.message
    assert running.sample("softkin_rejected_total", reason="invalid") == 1
    assert running.sample("softkin_rejected_total", reason="too_large") == 1
    assert running.sample("grpc_server_msg_received_total", **LABELS) == 5


LABELS = {
    "grpc_type": "BIDI_STREAM",
    "grpc_service": "softkin.v1.OutlierService",
    "grpc_method": "ScoreStream",
}


def filled_by_another(start, rows, gate):
    """A server whose gate is full of a call's rows, and the call."""
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=4, max_pending_rows=4, workers=1)
    other = running.stub.Score.future(message(rows(4)).request, timeout=60)
    assert detector.entered.acquire(timeout=20)
    return running, other


def test_a_gate_that_stays_full_is_an_answer_to_whom_has_nothing_pending(start, rows, gate, monkeypatch):
    """The gate is the same for all calls; the refusal carries the time to wait, and the stream survives it."""
    monkeypatch.setattr(streaming, "PATIENCE_SECONDS", 0.2)
    running, other = filled_by_another(start, rows, gate)

    (refused,) = answers(running, [message(rows(1))])
    gate.set()
    other.result(timeout=20)

    assert refused.error.code == Code.RESOURCE_EXHAUSTED.value[0]
    retry = error_details_pb2.RetryInfo()
    assert refused.error.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 500
    assert running.sample("softkin_rejected_total", reason="queue_full") == 1


def test_a_stream_waits_a_while_for_the_requests_of_others(start, rows, gate):
    """Its sender can wait, so several that fill the gate together are all served."""
    running, other = filled_by_another(start, rows, gate)
    stream = running.stub.ScoreStream(iter([message(rows(4, i)) for i in range(3)]), timeout=60)
    running.until(lambda: running.sample("grpc_server_msg_received_total", **LABELS) == 1)

    gate.set()
    found = [a.response.outlier_score[0] for r in stream for a in r.answers]

    assert found == [float(rows(4, i)[0].sum()) for i in range(3)]
    assert other.result(timeout=20)
    assert running.sample("softkin_rejected_total", reason="queue_full") == 0


def test_a_stream_that_is_left_while_it_waits_for_others_ends(start, rows, gate):
    """Nothing holds its place or its threads until the others are done."""
    running, other = filled_by_another(start, rows, gate)
    stream = running.stub.ScoreStream(iter([message(rows(1))]), timeout=60)
    running.until(lambda: running.sample("grpc_server_msg_received_total", **LABELS) == 1)

    stream.cancel()
    running.until(lambda: running.sample("softkin_streams") == 0)
    running.until(lambda: not [t for t in threading.enumerate() if t.name == "stream"])
    gate.set()

    assert other.result(timeout=20)
    running.until(lambda: running.sample("softkin_pending_rows") == 0)


def test_a_stream_does_not_overload_the_server_by_itself(start, rows, gate):
    """With its own requests filling the gate it is read no further, instead of being refused."""
    running = start(StandIn(gate=gate), max_rows=4, max_pending_rows=8, workers=1)
    stream = running.stub.ScoreStream(iter([message(rows(4, i)) for i in range(10)]), timeout=60)
    running.until(lambda: running.sample("softkin_pending_rows") == 8)

    gate.set()
    found = [a.response.outlier_score[0] for r in stream for a in r.answers]

    assert found == [float(rows(4, i)[0].sum()) for i in range(10)]
    assert running.sample("softkin_rejected_total", reason="queue_full") == 0


def test_requests_of_streams_and_calls_are_merged(start, rows, gate):
    """While the device is busy, what two streams and a call have sent gathers into one batch."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    first = running.stub.Score.future(message(rows(1)).request, timeout=60)
    assert detector.entered.acquire(timeout=20)
    streams = [running.stub.ScoreStream(iter([message(rows(2)), message(rows(3))]), timeout=60) for _ in range(2)]
    call = running.stub.Score.future(message(rows(4)).request, timeout=60)
    running.until(lambda: running.server.pending_requests == 6)

    gate.set()

    assert [len(a.response.p_value) for s in streams for r in s for a in r.answers] == [2, 3, 2, 3]
    assert len(call.result(timeout=20).p_value) == 4
    assert len(first.result(timeout=20).p_value) == 1
    assert detector.batches == [1, 14]


def test_a_sender_that_is_too_fast_waits(start, rows, gate, feed):
    """The server stops reading at its window, and reads on as answers go out."""
    running = start(StandIn(gate=gate), stream_window=3, workers=1)
    for i in range(50):
        feed.put(message(rows(1, i)))
    feed.put(None)
    stream = running.stub.ScoreStream(feed, timeout=60)
    running.until(lambda: running.server.pending_requests == 3)
    received = running.sample("grpc_server_msg_received_total", **LABELS)

    gate.set()
    found = [a.response.outlier_score[0] for response in stream for a in response.answers]

    assert received <= 4  # the window, and one in the reader's hand
    assert found == [float(rows(1, i).sum()) for i in range(50)]


def test_a_caller_who_leaves_frees_everything(start, rows, gate):
    """Nobody opens the gate: device, queue, stream and threads are free because the caller cancelled."""
    running = start(StandIn(gate=gate), workers=1)
    before = {t.name for t in threading.enumerate()}
    streams = [running.stub.ScoreStream(iter([message(rows(2))] * 20), timeout=60) for _ in range(4)]
    running.until(lambda: running.server.pending_requests == 80)

    for stream in streams:
        stream.cancel()

    running.until(lambda: running.server.pending_requests == 0)
    running.until(lambda: running.sample("softkin_streams") == 0)
    running.until(lambda: running.sample("grpc_server_handled_total", grpc_code="CANCELLED", **LABELS) == 4)
    running.until(lambda: not any(t.name == "stream" for t in threading.enumerate()))
    assert "stream" not in before


def test_a_deadline_ends_the_stream(start, rows, gate):
    """The device is free again."""
    running = start(StandIn(gate=gate), workers=1)

    with pytest.raises(grpc.RpcError) as e:
        list(running.stub.ScoreStream(iter([message(rows(2))] * 3), **until_the_server_ends_it(0.5)))

    assert e.value.code() is Code.DEADLINE_EXCEEDED
    running.until(lambda: running.server.pending_requests == running.sample("softkin_streams") == 0)
    running.until(lambda: running.sample("softkin_rejected_total", reason="deadline") == 1)  # the call, once


def test_streams_over_the_limit_are_refused_and_calls_are_not(start, rows, feed):
    """Each stream holds two threads, so their number is bounded."""
    running = start(StandIn(), max_streams=1)
    feed.put(message(rows(1)))
    first = running.stub.ScoreStream(feed, timeout=60)
    next(first)

    with pytest.raises(grpc.RpcError) as e:
        answers(running, [message(rows(1))])

    assert e.value.code() is Code.RESOURCE_EXHAUSTED
    assert e.value.details() == "1 streams are open, max_streams = 1; retry after 1 s, or send unary calls"
    assert dict(e.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
    assert running.sample("softkin_streams") == 1
    assert len(running.score(rows(2)).p_value) == 2
    feed.put(None)
    assert list(first) == []


def test_a_drain_finishes_open_streams(start, rows, gate, feed):
    """What was accepted is answered before the server is gone."""
    detector = StandIn(gate=gate)
    running = start(detector, drain_grace_seconds=30)
    feed.put(message(rows(1)))
    feed.put(message(rows(2)))
    feed.put(None)
    stream = running.stub.ScoreStream(feed, timeout=60)
    running.until(lambda: running.server.pending_requests == 2)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()

    gate.set()
    found = [len(a.response.p_value) for r in stream for a in r.answers]
    stopping.join(60)

    assert found == [1, 2]
    assert running.server.abandoned_requests == 0


class Failing(StandIn):
    """Its device fails on every batch, with an error of its own for each."""

    def score_rows(self, x, **options):
        """Fail."""
        raise DeviceError("out of memory")


@pytest.fixture
def no_collector(caplog):
    """Memory that nobody refers to comes back at once, or not at all."""
    caplog.set_level(logging.CRITICAL, "softkin.server")  # pytest would keep the errors that are logged
    gc.disable()
    yield
    gc.enable()


def unload_first(running):
    """Let version 2 serve alone."""
    with running.admin() as admin:
        admin.set_label("standin", "2", "stable")
        admin.unload("standin", "1")


def test_requests_that_failed_hold_no_version(start, rows, feed, no_collector):
    """What is unloaded gives its memory back though the stream stays open."""
    detector = Failing()
    running, held = start(detector, StandIn(version="2"), admin_port=0), weakref.ref(detector)
    del detector
    stream = running.stub.ScoreStream(feed, timeout=60)
    for version in ("1", "2"):
        feed.put(message(rows(1), version=version))
        [answer] = next(stream).answers
    unload_first(running)

    running.until(lambda: held() is None)

    assert answer.HasField("response")
    feed.put(None)
    assert list(stream) == []


def test_refusals_that_nobody_takes_hold_no_version(start, rows, no_collector):
    """They wait behind an answer that the caller does not read, and then it leaves."""
    detector = StandIn()
    running, held = start(detector, StandIn(version="2"), admin_port=0), weakref.ref(detector)
    del detector
    sent = [message(rows(1), version="1"), *[message(rows(1).astype(np.float64), version="1")] * 3]
    labels = {"grpc_type": "BIDI_STREAM", "grpc_service": "softkin.v1.OutlierService", "grpc_method": "ScoreStream"}
    options = {"grpc.http2.lookahead_bytes": 5, "grpc.http2.bdp_probe": 0, "grpc.use_local_subchannel_pool": 1}
    with grpc.insecure_channel(running.target, options=list(options.items())) as channel:
        stream = pb_grpc.OutlierServiceStub(channel).ScoreStream(iter(sent), timeout=60)
        running.until(lambda: running.sample("grpc_server_msg_sent_total", **labels) == 1)
        running.until(lambda: running.sample("grpc_server_msg_received_total", **labels) == 4)
        stream.cancel()
    unload_first(running)

    running.until(lambda: held() is None)


def test_the_error_of_a_caller_who_has_gone_holds_nothing_of_the_stream():
    """gRPC keeps it beside what it comes from; so the version that was asked would wait for the garbage collector."""
    error = grpc.RpcError()

    def requests():
        raise error
        yield

    stream = _Stream(None, None, 1, None)
    held = weakref.ref(stream)

    stream._read(requests())
    del stream

    assert held() is None
