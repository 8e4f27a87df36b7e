"""What every call passes through: counted from its arrival to its end, timed, and its errors turned into statuses."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from softkin.call_threads import arriving
from softkin.errors import (
    CancelledError,
    ExpiredError,
    InvalidInputError,
    MessageTooLargeError,
    SoftkinError,
    UnavailableError,
)
from softkin.logs import log, log_line
from softkin.metrics import Metrics
from softkin.statuses import REASONS, Code, end_code, failure
from softkin.traffic import Traffic

UNARY, BIDI_STREAM = "UNARY", "BIDI_STREAM"
"""What metrics call the kinds of methods."""
UNKNOWN = "unknown"
"""Stands in metrics for a method that does not exist, whatever the caller named it."""
REQUEST_ID = "x-request-id"
"""Metadata with which callers name a call; log lines repeat it."""
_FIT_ID = re.compile(r"[\w.:-]{1,64}")


def request_id(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """What a caller named its call, if it is fit for a log; empty if not."""
    for key, value in metadata or ():
        if key == REQUEST_ID and isinstance(value, str) and _FIT_ID.fullmatch(value):
            return value
    return ""


class _Call:
    """One call between its arrival and its end."""

    def __init__(
        self,
        metrics: Metrics,
        rejected: Callable[[str], None],
        traffic: Traffic,
        labels: tuple[str, str, str],
        metadata: Iterable[tuple[str, str | bytes]] | None,
    ) -> None:
        self._metrics = metrics
        self._rejected = rejected
        self._labels = labels
        self._traffic = traffic
        self._sent_metadata = metadata
        self._started = time.perf_counter()
        self.code: grpc.StatusCode | None = None
        metrics.call_started(labels)
        self._stream = labels[0] != UNARY
        self.accepted = traffic.arrive(stream=self._stream)
        self._refused = False

    @property
    def request_id(self) -> str:
        """What the caller sent as such, if it is fit for a log; empty if not."""
        return request_id(self._sent_metadata)

    def refuse(self) -> None:
        """Note that the call only waits to be told that it is refused: its room is free for others."""
        self._refused = True
        self._traffic.turn_away()

    def ending(self, context: grpc.ServicerContext) -> grpc.StatusCode:
        """How it ended whose caller no longer waits."""
        return end_code(context, time.perf_counter() - self._started)

    def end(self) -> None:
        """Count the end; a call without a code ended before its message had arrived."""
        code = self.code
        if code is None:
            code = Code.CANCELLED
            self._rejected("undelivered")
        seconds = time.perf_counter() - self._started
        self._metrics.call_handled(self._labels, code.name, seconds)
        if log.isEnabledFor(logging.DEBUG):
            _, service, method = self._labels
            log.debug(
                log_line(
                    "call",
                    service=service,
                    method=method,
                    code=code.name,
                    seconds=f"{seconds:.6f}",
                    request_id=self.request_id,
                )
            )
        if self.accepted:
            self._traffic.leave(stream=self._stream, refused=self._refused)


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps the handlers of some services and leaves all others alone.

    Health and reflection must stay unwrapped: a wrapper hides the mark that lets health Watch run without a thread.

    Args:
        metrics: where calls are counted.
        services: full names of the services to wrap; their methods are unary or stream both ways.
        unwrapped: full names of those to leave alone.
        scores: whether a call that fails is a request that was not scored, and counts as one.
        traffic: told of every call; refuses calls when the server stops.
        max_message_bytes: over which a message is refused.
        gated: paths of unary methods that `gate` is asked about before a call's message is read: under overload most
            calls are refused, and the less that costs, the more is left for the others.
        gate: raises the refusal.
    """

    def __init__(
        self,
        metrics: Metrics,
        services: Collection[str],
        unwrapped: Collection[str] = (),
        *,
        scores: bool = True,
        traffic: Traffic,
        max_message_bytes: int,
        gated: Collection[str] = (),
        gate: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._gated = frozenset(gated)
        self._gate = gate
        self._traffic = traffic
        self._metrics = metrics
        self._rejected: Callable[[str], None] = metrics.rejected if scores else lambda reason: None
        self._services = frozenset(services)
        self._unwrapped = frozenset(unwrapped)

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Open the call's account and wrap its handler."""
        handler = continuation(handler_call_details)
        service, _, method = handler_call_details.method[1:].rpartition("/")
        if handler is None:
            if service in self._unwrapped:
                return None
            call = self._arrive(handler_call_details, UNARY, UNKNOWN, UNKNOWN)
            # As a method that takes a stream: for a single message gRPC would wait, and hold a thread meanwhile.
            return grpc.stream_unary_rpc_method_handler(lambda requests, context: _refuse_unknown(call, context))
        if service not in self._services:
            return handler
        streams = handler.response_streaming
        call = self._arrive(handler_call_details, BIDI_STREAM if streams else UNARY, service, method)

        def deserialize(message: bytes) -> Any:
            return self._parsed(message, handler.request_deserializer)

        if streams:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(call, method, handler.stream_stream, requests, context),
                deserialize,
                handler.response_serializer,
            )
        if handler.request_streaming:  # of an interceptor behind this one, which refuses the call unread
            return grpc.stream_unary_rpc_method_handler(
                lambda requests, context: self._answer(call, method, handler.stream_unary, requests, context)
            )
        if call.accepted and handler_call_details.method in self._gated:
            try:
                self._gate()
            except SoftkinError as e:
                refusal = e.with_traceback(None)  # which would hold this frame, and this frame the refusal
                call.refuse()
                return grpc.stream_unary_rpc_method_handler(
                    lambda requests, context: self._fail(call, method, context, refusal)
                )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(call, method, handler.unary_unary, request, context),
            deserialize,
            handler.response_serializer,
        )

    def _arrive(self, details: grpc.HandlerCallDetails, kind: str, service: str, method: str) -> _Call:
        labels, metadata = (kind, service, method), details.invocation_metadata
        arriving.account = call = _Call(self._metrics, self._rejected, self._traffic, labels, metadata)
        return call

    def _answer(self, call: _Call, method: str, behavior: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            _refuse_late(call)
            response = behavior(_fit(request), context)
        except Exception as error:
            self._fail(call, method, context, error)
        call.code = _code_of_answered(call, context)
        return response

    def _stream(
        self, call: _Call, method: str, behavior: Any, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        call.code = Code.CANCELLED  # gRPC drops the iterator when the caller leaves
        try:
            _refuse_late(call)
            yield from behavior(map(_fit, requests), context)
        except GeneratorExit:
            call.code = call.ending(context)
            self._rejected(REASONS[call.code])
            raise
        except Exception as error:
            self._fail(call, method, context, error)
        call.code = _code_of_answered(call, context)

    def _parsed(self, message: bytes, parse: Callable[[bytes], Any]) -> Any:
        """The message, or why it is unfit: raised here, gRPC would tell the caller of a fault of the server."""
        limit = self._max_message_bytes
        if len(message) > limit:
            return _Unfit(
                partial(
                    MessageTooLargeError,
                    f"the message has {len(message)} bytes; max_message_bytes = {limit}: send several smaller ones",
                )
            )
        try:
            return parse(message)
        except Exception:
            return _Unfit(
                partial(InvalidInputError, "request", f"its {len(message)} bytes are no message of this method")
            )

    def _fail(self, call: _Call, method: str, context: grpc.ServicerContext, error: Exception) -> None:
        if isinstance(error, CancelledError) and call.ending(context) is Code.DEADLINE_EXCEEDED:
            error = ExpiredError()
        found = failure(error, method, call.request_id)
        call.code = found.code
        self._rejected(found.reason)
        found.abort(context)


@dataclass(frozen=True)
class _Unfit:
    """Stands for an unfit message. It makes the error when that is raised: one made here would hold the message."""

    error: Callable[[], SoftkinError]


def _fit(request: Any) -> Any:
    if isinstance(request, _Unfit):
        raise request.error()
    return request


def _refuse_late(call: _Call) -> None:
    if not call.accepted:
        raise UnavailableError("the server is stopping; retry on another one")


def _code_of_answered(call: _Call, context: grpc.ServicerContext) -> grpc.StatusCode:
    """How a call that was answered ends: an answer nobody waits for is no success."""
    return Code.OK if context.is_active() else call.ending(context)


def _refuse_unknown(call: _Call, context: grpc.ServicerContext) -> None:
    call.code = Code.UNIMPLEMENTED
    context.abort(Code.UNIMPLEMENTED, "Method not found!")
