"""Overload is refused at once, nobody computes for callers who have left, and health answers through all of it."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from garbage import frames_in_garbage
from softkin.admission import MORE_CALLS, Admission
from softkin.call_threads import UNWRAPPED_AT_START, UNWRAPPED_THREADS
from softkin.converters import array_to_tensor
from softkin.server import SPARE_THREADS
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn
from wire import until_the_server_ends_it

Code = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING
READY = "softkin.v1.OutlierService"


def is_serving(running, service=READY):
    """What the health service says."""
    request = health_pb2.HealthCheckRequest(service=service)
    return running.health.Check(request, timeout=20).status == SERVING


def in_background(running, rows, **options):
    """Start a Score call and return its future."""
    return running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows)), **options)


def test_thousands_of_calls_that_nobody_has_looked_at_are_all_refused_with_words(start, rows, gate, monkeypatch):
    """gRPC would cut off most of them, as cancelled: no caller could tell why, and none would be counted."""
    looks, refuse = threading.Event(), Admission.refuse_full

    def refuse_late(admission, *calls):
        looks.wait()
        refuse(admission, *calls)

    monkeypatch.setattr(Admission, "refuse_full", refuse_late)
    running = start(StandIn(gate=gate), max_rows=4, max_pending_rows=4, workers=1)
    looks.set()
    admitted = in_background(running, rows(4), timeout=60)
    running.until(lambda: running.sample("softkin_pending_rows") == 4)
    looks.clear()
    calls = [in_background(running, rows(1), timeout=60) for _ in range(4000)]
    looks.set()

    assert {call.code() for call in calls} == {Code.RESOURCE_EXHAUSTED}
    gate.set()
    assert len(admitted.result().p_value) == 4


def test_rows_over_the_limit_are_refused_while_health_stays_serving(start, rows, gate):
    """Exactly max_pending_rows rows get in; the refusal carries a delay; everything admitted is answered."""
    detector = StandIn(gate=gate)
    running = start(detector, max_rows=4, max_pending_rows=10, workers=1)
    admitted = [in_background(running, rows(n), timeout=60) for n in (4, 4, 2)]
    running.until(lambda: running.sample("softkin_pending_rows") == 10)

    refused = []
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as e:
            running.score(rows(1))
        refused.append((e.value.code(), dict(e.value.trailing_metadata())["grpc-retry-pushback-ms"]))
    healthy = is_serving(running), is_serving(running, "")
    gate.set()

    assert refused == [(Code.RESOURCE_EXHAUSTED, "500")] * 5
    assert healthy == (True, True)
    assert [len(f.result(timeout=20).p_value) for f in admitted] == [4, 4, 2]
    assert running.sample("softkin_rejected_total", reason="queue_full") == 5
    running.until(lambda: running.sample("softkin_pending_rows") == 0)


@pytest.mark.parametrize("method", ["softkin.v1.OutlierService/Score", "inference.GRPCInferenceService/ModelInfer"])
def test_a_full_gate_refuses_before_the_message_is_there(start, rows, gate, method):
    """What is refused costs as little as can be: nothing is read, no thread waits for what is on its way."""
    running = start(StandIn(gate=gate), max_pending_requests=1, workers=1)
    admitted = in_background(running, rows(1), timeout=60)
    running.until(lambda: running.server.pending_requests == 1)
    left = threading.Event()

    def silence():
        left.wait(60)
        yield from ()

    with pytest.raises(grpc.RpcError) as e:
        running.channel.stream_unary(f"/{method}")(silence(), timeout=20)
    left.set()
    gate.set()

    assert e.value.code() is Code.RESOURCE_EXHAUSTED
    assert dict(e.value.trailing_metadata())["grpc-retry-pushback-ms"] == "500"
    assert admitted.result(timeout=20)


def test_requests_over_the_limit_are_refused_even_with_few_rows(start, rows, gate):
    """Every pending request holds a thread, so their number is bounded too."""
    detector = StandIn(gate=gate)
    running = start(detector, max_pending_requests=3, workers=1)
    admitted = [in_background(running, rows(1), timeout=60) for _ in range(3)]
    running.until(lambda: running.server.pending_requests == 3)

    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1))
    gate.set()

    assert e.value.code() is Code.RESOURCE_EXHAUSTED
    assert "3 requests are pending, max_pending_requests = 3" in e.value.details()
    assert all(f.result(timeout=20) for f in admitted)


def test_open_watches_and_a_full_queue_do_not_starve_anyone(start, rows, gate):
    """More Watch streams than threads, every pending place taken: Check still answers, and so does a refusal."""
    detector = StandIn(gate=gate)
    running = start(detector, max_pending_requests=2, workers=1)
    watches = [running.health.Watch(health_pb2.HealthCheckRequest(service=READY)) for _ in range(2 * SPARE_THREADS)]
    seen = [next(w).status for w in watches]
    admitted = [in_background(running, rows(1), timeout=60) for _ in range(2)]
    running.until(lambda: running.server.pending_requests == 2)

    answered = is_serving(running)
    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1))
    gate.set()
    for w in watches:
        w.cancel()

    assert seen == [SERVING] * len(watches)
    assert answered
    assert e.value.code() is Code.RESOURCE_EXHAUSTED
    assert all(f.result(timeout=20) for f in admitted)


def test_callers_that_send_nothing_do_not_make_the_server_look_dead(start, rows):
    """Each holds a thread until its message is there or it leaves: as many as there is room for, and others are told.

    Health and reflection have threads of their own.
    """
    running = start(StandIn(), max_pending_requests=1, max_streams=1)
    left = threading.Event()

    def silence():
        left.wait(60)
        yield from ()

    score = running.channel.stream_unary("/softkin.v1.OutlierService/Score")
    silent = [score.future(silence(), timeout=60) for _ in range(1 + MORE_CALLS)]
    labels = {"grpc_type": "UNARY", "grpc_service": READY, "grpc_method": "Score"}
    running.until(lambda: running.sample("grpc_server_started_total", **labels) == len(silent))

    refused = [in_background(running, rows(1), timeout=20) for _ in range(2 * SPARE_THREADS)]
    assert {call.code() for call in refused} == {Code.RESOURCE_EXHAUSTED}
    assert re.match(
        r"10 calls are under way, max_pending_requests = 1 and 8 more, .* on their way; retry after 0.5 s",
        refused[0].details(),
    )
    exhausted = {"grpc_code": "RESOURCE_EXHAUSTED", **labels}
    running.until(lambda: running.sample("grpc_server_handled_total", **exhausted) == len(refused))
    assert in_background(running, rows(1), timeout=20).code() is Code.RESOURCE_EXHAUSTED  # those have made no room
    assert is_serving(running)
    assert READY in ProtoReflectionDescriptorDatabase(running.channel).get_services()
    for call in silent:
        call.cancel()
    left.set()
    running.until(lambda: running.sample("softkin_rejected_total", reason="undelivered") == len(silent))
    assert len(running.score(rows(2)).p_value) == 2
    assert running.sample("softkin_rejected_total", reason="queue_full") == len(refused) + 1
    ends = {"CANCELLED": len(silent), "OK": 1}
    running.until(lambda: {c: running.sample("grpc_server_handled_total", grpc_code=c, **labels) for c in ends} == ends)


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_callers_of_health_and_reflection_that_send_nothing_do_not_keep_health_from_others(start, method):
    """More of them than threads: who has waited longest for nothing makes room."""
    running = start(StandIn())
    left = threading.Event()

    def silence():
        left.wait(60)
        yield from ()

    opening = running.channel.stream_stream(f"/{method}")
    silent = [opening(silence(), timeout=60) for _ in range(UNWRAPPED_THREADS + 20)]

    assert is_serving(running)
    assert next(running.health.Watch(health_pb2.HealthCheckRequest(service=READY), timeout=20)).status == SERVING
    assert READY in ProtoReflectionDescriptorDatabase(running.channel).get_services()
    assert silent[0].code() is Code.CANCELLED
    # Of anybody a message is taken that may have 128 MiB: few at a time.
    running.until(lambda: sum(not call.done() for call in silent) <= 32)
    left.set()


def test_nor_do_they_where_no_further_thread_can_be_started(start, monkeypatch):
    """Those that are there at the start are few: as many silent callers hold them all."""
    running, begin, left = start(StandIn()), threading.Thread.start, threading.Event()

    def no_more(thread):
        if thread.name.startswith("rpc-unwrapped"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    def silence():
        left.wait(60)
        yield from ()

    monkeypatch.setattr(threading.Thread, "start", no_more)
    opening = running.channel.stream_stream("/grpc.health.v1.Health/Check")
    silent = [opening(silence(), timeout=20) for _ in range(UNWRAPPED_AT_START)]
    # The next caller ends the one that came first, once that has had its time.
    while not (ended := [call for call in silent if call.done()]):
        with suppress(grpc.RpcError):
            running.health.Check(health_pb2.HealthCheckRequest(), timeout=1)

    assert is_serving(running)
    assert {call.code() for call in ended} == {Code.CANCELLED}
    left.set()


def test_open_streams_take_no_room_from_calls(start, rows):
    """They have threads of their own: a stream that is open and idle is no call under way."""
    running = start(StandIn(), max_pending_requests=1, max_streams=2 + MORE_CALLS)
    left = threading.Event()

    def idle():
        yield pb.ScoreStreamRequest(request=pb.ScoreRequest(inputs=array_to_tensor(rows(1))))
        left.wait(60)

    streams = [running.stub.ScoreStream(idle(), timeout=60) for _ in range(2 + MORE_CALLS)]
    for stream in streams:
        assert len(next(stream).answers) == 1

    assert len(running.score(rows(2)).p_value) == 2
    left.set()
    assert [list(stream) for stream in streams] == [[]] * len(streams)
    assert len(running.score(rows(3)).p_value) == 3


def test_a_stranger_is_refused_before_anything_is_sent(start, tmp_path):
    """A call that waits for its message holds a thread, which one without a token must not."""
    tokens = tmp_path / "tokens"
    tokens.write_text("right")
    running = start(StandIn(), token_file=tokens)
    left = threading.Event()

    def silence():
        left.wait(60)
        yield from ()

    methods = (f"/{READY}/Score", f"/{READY}/GetDrift", "/no.such.Service/Method")
    calls = [running.channel.stream_unary(m).future(silence(), timeout=20) for m in methods]
    found = [call.exception(timeout=30).code() for call in calls]
    left.set()

    assert found == [Code.UNAUTHENTICATED, Code.UNAUTHENTICATED, Code.UNIMPLEMENTED]
    running.until(lambda: running.sample("softkin_rejected_total", reason="unauthenticated") == 2)


def test_a_request_whose_deadline_passes_in_the_queue_is_not_scored(start, rows, gate):
    """It gives its place back and is counted as DEADLINE_EXCEEDED."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    first = in_background(running, rows(1), timeout=60)
    assert detector.entered.acquire(timeout=20)

    with pytest.raises(grpc.RpcError) as e:
        running.stub.Score(pb.ScoreRequest(inputs=array_to_tensor(rows(5))), **until_the_server_ends_it(0.2))
    running.until(lambda: running.server.pending_requests == 1)
    gate.set()
    first.result(timeout=20)

    assert e.value.code() is Code.DEADLINE_EXCEEDED
    running.until(lambda: running.sample("softkin_rejected_total", reason="deadline") == 1)
    assert detector.rows_scored == 1


def test_a_request_whose_caller_has_gone_is_not_scored(start, rows, gate):
    """Cancelled while it waits: it gives its place back and is counted as CANCELLED."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    first = in_background(running, rows(1), timeout=60)
    assert detector.entered.acquire(timeout=20)
    second = in_background(running, rows(5), timeout=60)
    running.until(lambda: running.server.pending_requests == 2)

    second.cancel()
    is_serving(running)  # travels behind the cancellation on the same connection: once answered, the server knows
    gate.set()
    first.result(timeout=20)

    running.until(lambda: running.sample("softkin_rejected_total", reason="cancelled") == 1)
    assert detector.rows_scored == 1
    assert running.server.pending_requests == 0


def test_a_request_that_is_computed_stops_when_its_caller_goes(start, rows, gate):
    """Nobody opens the gate: the device is free again because the caller cancelled."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    call = in_background(running, rows(3), timeout=60)
    assert detector.entered.acquire(timeout=20)

    call.cancel()

    running.until(lambda: running.server.pending_requests == 0)
    running.until(lambda: running.sample("softkin_rejected_total", reason="cancelled") == 1)
    assert detector.rows_scored == 0


def test_a_request_that_is_computed_stops_at_its_deadline(start, rows, gate):
    """The same for a deadline that passes while the device works."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)

    with pytest.raises(grpc.RpcError) as e:
        running.stub.Score(pb.ScoreRequest(inputs=array_to_tensor(rows(3))), **until_the_server_ends_it(1))

    assert detector.entered.acquire(timeout=20)
    assert e.value.code() is Code.DEADLINE_EXCEEDED
    running.until(lambda: running.server.pending_requests == 0)
    running.until(lambda: running.sample("softkin_rejected_total", reason="deadline") == 1)
    assert detector.rows_scored == 0


def test_only_as_many_requests_compute_at_once_as_there_are_workers(start, rows, gate):
    """The others wait for a slot instead of competing for the same cores."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=2, max_batch_rows=1)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(running.score, rows(1)) for _ in range(6)]
        running.until(lambda: running.server.pending_requests == 6)
        computing = [detector.entered.acquire(timeout=t) for t in (20, 20)]
        third = detector.entered.acquire(timeout=0.2)
        gate.set()

        assert (computing, third) == ([True, True], False)
        assert all(len(a.result(timeout=20).p_value) == 1 for a in answers)


def test_a_full_gate_refuses_before_it_looks_at_the_request(start, rows, gate):
    """Whatever it holds: to read it would cost the time that those inside wait for."""
    running = start(StandIn(gate=gate), max_pending_requests=1, workers=1)
    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(running.score, rows(1))
        running.until(lambda: running.server.pending_requests == 1)

        with pytest.raises(grpc.RpcError) as e:
            running.stub.Score(pb.ScoreRequest(detector="no such detector"), timeout=20)
        described = running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20).detectors

        gate.set()
        assert len(described) == 1  # what needs no device passes
        assert e.value.code() is Code.RESOURCE_EXHAUSTED
        assert len(inside.result(timeout=20).p_value) == 1


def test_a_refusal_at_a_full_gate_leaves_no_garbage(start, rows, gate):
    """Under overload there are thousands a second, each with all that its call held."""
    running = start(StandIn(gate=gate), max_pending_requests=1, workers=1)
    inside = in_background(running, rows(1), timeout=60)
    running.until(lambda: running.server.pending_requests == 1)

    def refused():
        with pytest.raises(grpc.RpcError, match="1 requests are pending"):
            running.score(rows(1))

    assert frames_in_garbage(refused) == []
    gate.set()
    assert len(inside.result(timeout=20).p_value) == 1


def test_a_request_without_a_deadline_waits_its_turn(start, rows, gate):
    """No deadline is reported by gRPC as a time too large for a lock's timeout."""
    running = start(StandIn(gate=gate), workers=1)
    calls = [in_background(running, rows(n)) for n in (1, 2)]
    running.until(lambda: running.server.pending_requests == 2)

    gate.set()

    assert [len(c.result(timeout=20).p_value) for c in calls] == [1, 2]
