"""What the metrics say is what the callers saw: every call that arrived is counted once, to its end."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn
from wire import until_the_server_ends_it

Code = grpc.StatusCode
SERVICE = "softkin.v1.OutlierService"
SCORE = {"grpc_type": "UNARY", "grpc_service": SERVICE, "grpc_method": "Score"}


def request(x, **fields):
    """A Score request."""
    return pb.ScoreRequest(inputs=array_to_tensor(x), **fields)


def totals(running, name):
    """All series of a counter: labels without their names, and the value."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in running.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


def handled(running, **labels):
    """Calls of one method by code."""
    return {
        sample.labels["grpc_code"]: sample.value
        for family in running.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "grpc_server_handled_total" and sample.value and labels.items() <= sample.labels.items()
    }


def settled(running):
    """Wait until started = handled for every method."""

    def balanced():
        started = totals(running, "grpc_server_started_total")
        done: Counter[tuple[str, ...]] = Counter()
        for (*method, _), value in totals(running, "grpc_server_handled_total").items():
            done[tuple(method)] += value
        return started == dict(done)

    running.until(balanced)


def test_every_way_to_end_is_counted_under_its_own_code(start, rows, gate):
    """Success, refusal, cancellation, expiry, a message too large, garbage, a method that does not exist."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1, max_message_bytes=4096)
    raw = {"Score": running.channel.unary_unary(f"/{SERVICE}/Score")}
    unknown = [running.channel.unary_unary(path) for path in (f"/{SERVICE}/Nothing", "/nobody.Nowhere/At")]

    held = running.stub.Score.future(request(rows(1)), timeout=60)
    assert detector.entered.acquire(timeout=20)
    expiring = [running.stub.Score.future(request(rows(1)), **until_the_server_ends_it(3)) for _ in range(3)]
    leaving = [running.stub.Score.future(request(rows(1)), timeout=60) for _ in range(4)]
    running.until(lambda: running.server.pending_requests == 8)
    for call in leaving:
        call.cancel()
    for call in expiring:
        assert call.code() is Code.DEADLINE_EXCEEDED
    codes = []
    for call, message in [
        *[(raw["Score"], request(np.zeros((1, 1500), np.float32)).SerializeToString())] * 5,
        *[(raw["Score"], b"\xff\xff garbage")] * 2,
        *[(raw["Score"], request(rows(1), alpha=7.0).SerializeToString())] * 6,
        *[(method, b"") for method in unknown],
    ]:
        with pytest.raises(grpc.RpcError) as e:
            call(message, timeout=20)
        codes.append(e.value.code())
    gate.set()
    held.result(timeout=20)
    settled(running)

    assert Counter(codes) == {
        Code.RESOURCE_EXHAUSTED: 5,
        Code.INVALID_ARGUMENT: 2 + 6,
        Code.UNIMPLEMENTED: 2,
    }
    assert handled(running, **SCORE) == {
        "OK": 1,
        "DEADLINE_EXCEEDED": 3,
        "CANCELLED": 4,
        "RESOURCE_EXHAUSTED": 5,
        "INVALID_ARGUMENT": 2 + 6,
    }
    assert handled(running, grpc_service="unknown") == {"UNIMPLEMENTED": 2}
    assert {k[0]: v for k, v in totals(running, "softkin_rejected_total").items()} == {
        "deadline": 3,
        "cancelled": 4,
        "too_large": 5,
        "invalid": 2 + 6,
    }
    assert detector.rows_scored == running.sample("softkin_p_value_count", detector="standin", version="1") == 1


def test_a_method_that_health_does_not_have_is_no_call_of_the_service(start):
    """Health and reflection are left alone, and so are not counted."""
    running = start(StandIn())

    with pytest.raises(grpc.RpcError) as e:
        running.channel.unary_unary("/grpc.health.v1.Health/Nothing")(b"", timeout=20)

    assert e.value.code() is Code.UNIMPLEMENTED
    assert totals(running, "grpc_server_started_total") == {}


def test_what_is_in_flight_is_started_and_not_yet_handled(start, rows, gate):
    """The difference of the two counters is the number of calls under way, at any moment."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    calls = [running.stub.Score.future(request(rows(1)), timeout=60) for _ in range(7)]
    running.until(lambda: running.server.pending_requests == 7)

    flying = running.sample("grpc_server_started_total", **SCORE) - sum(handled(running, **SCORE).values())
    gate.set()
    for call in calls:
        call.result(timeout=20)
    settled(running)

    assert flying == 7
    assert handled(running, **SCORE) == {"OK": 7}


def test_the_time_of_a_call_is_all_that_its_caller_waited_on_the_server(start, rows, gate):
    """From its arrival to its end, the wait for the device included."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    begun = time.monotonic()
    call = running.stub.Score.future(request(rows(1)), timeout=60)
    assert detector.entered.acquire(timeout=20)
    held = time.monotonic()
    while time.monotonic() < held + 0.05:
        gate.wait(0.05)
    held = time.monotonic() - held
    gate.set()
    call.result(timeout=20)
    settled(running)

    assert held <= running.sample("grpc_server_handling_seconds_sum", **SCORE) <= time.monotonic() - begun


def test_a_random_mix_from_many_callers_reconciles(start, rows):
    """Twelve callers do what they like; codes and rows agree with their own books, to the call and to the row."""
    running = start(StandIn(), max_rows=8, max_message_bytes=4096)

    def caller(seed):
        chance, seen, scored = random.Random(seed), Counter(), 0
        for _ in range(60):
            kind = chance.choice(["fine", "fine", "invalid", "missing", "large", "stream"])
            n = chance.randint(1, 8)
            if kind == "stream":
                messages = [pb.ScoreStreamRequest(request=request(rows(n))) for _ in range(5)]
                for response in running.stub.ScoreStream(iter(messages), timeout=60):
                    scored += sum(len(a.response.p_value) for a in response.answers)
                seen["stream"] += 1
                continue
            fields = {"invalid": {"alpha": 2.0}, "missing": {"detector": "x"}}.get(kind, {})
            x = np.zeros((1, 1500), np.float32) if kind == "large" else rows(n)
            try:
                running.stub.Score(request(x, **fields), timeout=60)
                seen["OK"] += 1
                scored += n
            except grpc.RpcError as e:
                seen[e.code().name] += 1
        return seen, scored

    with ThreadPoolExecutor(12) as pool:
        books = list(pool.map(caller, range(12)))
    settled(running)
    seen = sum((b for b, _ in books), Counter())

    assert handled(running, grpc_method="ScoreStream") == {"OK": seen.pop("stream")}
    assert handled(running, **SCORE) == dict(seen)
    rows_counted = sum(totals(running, "softkin_rows_total").values())
    assert rows_counted == sum(scored for _, scored in books)
    assert running.sample("grpc_server_handling_seconds_count", **SCORE) == sum(seen.values())
