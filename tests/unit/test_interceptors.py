"""What the interceptor makes of a call before any service sees it."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest
from prometheus_client import CollectorRegistry

from softkin import interceptors
from softkin.call_threads import arriving
from softkin.errors import CancelledError, OverloadedError
from softkin.interceptors import CallInterceptor, request_id
from softkin.metrics import Metrics
from softkin.statuses import REASONS
from softkin.traffic import Traffic

Code = grpc.StatusCode
UNARY, STREAM = "/a.Service/Unary", "/a.Service/Stream"


class AbortedError(Exception):
    """As gRPC ends a call that is refused."""


class Context:
    """Of a call whose caller waits, or has gone so many seconds before its deadline."""

    def __init__(self, gone=None):
        self.gone, self.aborted = gone, None

    def is_active(self):
        """Whether the caller waits."""
        return self.gone is None

    def time_remaining(self):
        """Until the deadline."""
        return self.gone

    def set_trailing_metadata(self, trailers):
        """Not looked at here."""

    def abort(self, code, details):
        """Raises."""
        self.aborted = code, details
        raise AbortedError


def full():
    """A gate that lets nobody in."""
    raise OverloadedError("full", 0.5)


class Calls:
    """An interceptor with its books; every handler answers a message with itself."""

    def __init__(self, **options):
        self.traffic, self.metrics = Traffic(), Metrics(CollectorRegistry(), version="0")
        self.interceptor = CallInterceptor(
            self.metrics, ["a.Service"], traffic=self.traffic, max_message_bytes=10, **options
        )

    def arrive(self, method, behavior=lambda received, context: received):
        """The handler that gRPC would call, and the call's account."""
        handler = {
            UNARY: grpc.unary_unary_rpc_method_handler(behavior, bytes, bytes),
            STREAM: grpc.stream_stream_rpc_method_handler(behavior, bytes, bytes),
        }[method]
        details = SimpleNamespace(method=method, invocation_metadata=())
        wrapped = self.interceptor.intercept_service(lambda details: handler, details)
        account, arriving.account = arriving.account, None
        return wrapped, account

    def counted(self, name):
        """The one label that tells series of a counter apart, with what was counted."""
        label = {"grpc_server_handled": "grpc_code", "softkin_rejected": "reason"}[name]
        return {
            sample.labels[label]: sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"{name}_total" and sample.value
        }

    def under_way(self):
        """Accepted, streams, turned away."""
        return self.traffic.accepted, self.traffic.streams, self.traffic.turned_away


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, ""),
        ((), ""),
        ((("x-request-id", "a-Z_9.:"),), "a-Z_9.:"),
        ((("x-request-id", "x" * 64),), "x" * 64),
        ((("x-request-id", "x" * 65),), ""),
        ((("x-request-id", ""),), ""),
        ((("x-request-id", "order 66"),), ""),
        ((("x-request-id", "order-66\n"),), ""),
        ((("x-request-id", b"order-66"),), ""),
        ((("x-request-id-bin", "order-66"), ("user-agent", "grpc")), ""),
        ((("user-agent", "grpc"), ("x-request-id", "no good"), ("x-request-id", "good")), "good"),
    ],
)
def test_a_request_id_is_what_is_fit_for_a_log_line(metadata, expected):
    """Up to 64 characters that cannot end a value or a line, from the one key that is meant for it."""
    assert request_id(metadata) == expected


@pytest.mark.parametrize(("gone", "code"), [(None, "OK"), (5.0, "CANCELLED"), (0.0, "DEADLINE_EXCEEDED")])
@pytest.mark.parametrize("method", [UNARY, STREAM])
def test_an_answer_that_nobody_waits_for_is_no_success(method, gone, code):
    """Counted as the caller's end, whichever it was."""
    calls = Calls()
    handler, account = calls.arrive(method)

    if method == UNARY:
        assert handler.unary_unary(b"x", Context(gone)) == b"x"
    else:
        assert list(handler.stream_stream(iter([b"x", b"y"]), Context(gone))) == [b"x", b"y"]
    account.end()

    assert calls.counted("grpc_server_handled") == {code: 1}
    assert calls.counted("softkin_rejected") == {}
    assert calls.under_way() == (0, 0, 0)


@pytest.mark.parametrize(
    ("seconds", "gone", "code"),
    [
        (11.0, 0.09, "DEADLINE_EXCEEDED"),
        (0.1, 0.02, "DEADLINE_EXCEEDED"),
        (0.1, 0.03, "CANCELLED"),
        (11.0, 0.2, "CANCELLED"),
        (11.0, 1e18, "CANCELLED"),
    ],
)
@pytest.mark.parametrize("method", [UNARY, STREAM])
def test_a_caller_that_leaves_in_the_last_hundredth_of_its_time_has_none_left(method, seconds, gone, code, monkeypatch):
    """A deadline travels in few digits, rounded up by as much: by its own clock, which ends the call, it has passed."""
    now = [5.0]
    monkeypatch.setattr(interceptors, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def stopped(request, context):
        raise CancelledError

    calls = Calls()
    handler, account = calls.arrive(method, stopped)
    now[0] += seconds

    with pytest.raises(AbortedError):
        handler.unary_unary(b"x", Context(gone)) if method == UNARY else list(handler.stream_stream([], Context(gone)))
    account.end()

    assert calls.counted("grpc_server_handled") == {code: 1}
    assert calls.counted("softkin_rejected") == {REASONS[Code[code]]: 1}


@pytest.mark.parametrize(("gone", "code"), [(5.0, Code.CANCELLED), (0.0, Code.DEADLINE_EXCEEDED)])
def test_a_stream_whose_caller_leaves_ends_as_such_and_was_delivered(gone, code):
    """gRPC drops it between two answers, without a word: nobody else counts it as not scored."""
    calls, context = Calls(), Context()
    handler, account = calls.arrive(STREAM)
    answers = handler.stream_stream(iter([b"x", b"y"]), context)

    assert next(answers) == b"x"
    assert calls.under_way() == (1, 1, 0)
    context.gone = gone
    answers.close()
    account.end()

    assert calls.counted("grpc_server_handled") == {code.name: 1}
    assert calls.counted("softkin_rejected") == {REASONS[code]: 1}
    assert calls.under_way() == (0, 0, 0)


@pytest.mark.parametrize("method", [UNARY, STREAM])
def test_a_call_that_comes_when_the_server_stops_is_told_so(method):
    """Streams like others, and also while the gate is full: the caller tries elsewhere. It never was under way."""
    calls, context = Calls(gated=[UNARY], gate=full), Context()
    calls.traffic.refuse()
    handler, account = calls.arrive(method)

    with pytest.raises(AbortedError):
        handler.unary_unary(b"x", context) if method == UNARY else list(handler.stream_stream(iter([b"x"]), context))
    account.end()

    assert context.aborted == (Code.UNAVAILABLE, "the server is stopping; retry on another one")
    assert calls.counted("grpc_server_handled") == {"UNAVAILABLE": 1}
    assert calls.counted("softkin_rejected") == {"unavailable": 1}
    assert calls.under_way() == (0, 0, 0)


def test_a_call_that_the_gate_refuses_is_turned_away_until_it_has_been_told():
    """Its room is for others at once, and comes back once."""
    calls, context = Calls(gated=[UNARY], gate=full), Context()
    handler, account = calls.arrive(UNARY)
    meanwhile = calls.under_way()

    with pytest.raises(AbortedError):
        handler.stream_unary(iter([]), context)
    account.end()

    assert meanwhile == (1, 0, 1)
    assert context.aborted == (Code.RESOURCE_EXHAUSTED, "full")
    assert calls.counted("softkin_rejected") == {"queue_full": 1}
    assert calls.under_way() == (0, 0, 0)


def test_calls_that_are_no_requests_count_as_calls_only():
    """An admin call that fails is no row that was not scored."""
    calls, context = Calls(scores=False), Context()
    calls.traffic.refuse()
    handler, account = calls.arrive(UNARY)

    with pytest.raises(AbortedError):
        handler.unary_unary(b"x", context)
    account.end()
    _, undelivered = calls.arrive(UNARY)
    undelivered.end()

    assert calls.counted("grpc_server_handled") == {"UNAVAILABLE": 1, "CANCELLED": 1}
    assert calls.counted("softkin_rejected") == {}


@pytest.mark.parametrize(("size", "code"), [(10, None), (11, Code.RESOURCE_EXHAUSTED)])
@pytest.mark.parametrize("method", [UNARY, STREAM])
def test_a_message_of_exactly_the_limit_is_taken(method, size, code):
    """And one byte more is not."""
    calls, context = Calls(), Context()
    handler, _ = calls.arrive(method)
    message = handler.request_deserializer(bytes(size))

    try:
        found = (
            [handler.unary_unary(message, context)]
            if method == UNARY
            else list(handler.stream_stream(iter([message]), context))
        )
    except AbortedError:
        found = []

    assert (found, context.aborted and context.aborted[0]) == ([] if code else [bytes(size)], code)
