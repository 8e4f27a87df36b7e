"""What every call passes through: counted from its arrival to its end, timed, and its errors turned into statuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc

from softkin.metrics import Metrics
from softkin.statuses import Code, failure

UNKNOWN = "unknown"
"""Stands in metrics for a method that does not exist, whatever the caller named it."""
LONG_WAIT_SECONDS = 0.1
"""For a thread. A call that ends without its message after less has not been given up: the message was too large."""


class _Call:
    """One call between its arrival and its end."""

    def __init__(self, metrics: Metrics, rejected: Callable[[str], None], kind: str, service: str, method: str) -> None:
        self._metrics = metrics
        self._rejected = rejected
        self._labels = (kind, service, method)
        self._started = time.perf_counter()
        self.code: grpc.StatusCode | None = None
        self.received = False
        metrics.call_started(self._labels)

    def end(self, waited_seconds: float) -> None:
        """Count the end; a call without a code never reached its handler."""
        code = self.code
        if code is None:
            given_up = self.received or waited_seconds > LONG_WAIT_SECONDS
            code = Code.CANCELLED if given_up else Code.RESOURCE_EXHAUSTED
            self._rejected("cancelled" if given_up else "too_large")
        self._metrics.call_handled(self._labels, code.name, time.perf_counter() - self._started)


_arriving = threading.local()


class CountingPool(ThreadPoolExecutor):
    """The server's threads; ends the accounts of the calls that `CallInterceptor` has opened.

    gRPC asks the interceptor for a handler and then, in the same thread, hands the call to the pool; so the pool sees
    calls end that never reach a handler, because their message was too large or their caller had left.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call to its end, then count it."""
        call: _Call | None = getattr(_arriving, "call", None)
        _arriving.call = None
        if call is None:
            return super().submit(fn, *args, **kwargs)

        submitted = time.perf_counter()

        def run() -> None:
            waited = time.perf_counter() - submitted
            try:
                fn(*args, **kwargs)
            finally:
                call.end(waited)

        return super().submit(run)


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps the handlers of some services and leaves all others alone.

    Health and reflection must stay unwrapped: a wrapper hides the mark that lets health Watch run without a thread.

    Args:
        metrics: where calls are counted.
        services: full names of the services to wrap; their methods are unary or stream both ways.
        unwrapped: full names of those to leave alone.
        scores: whether a call that fails is a request that was not scored, and counts as one.
    """

    def __init__(
        self, metrics: Metrics, services: Collection[str], unwrapped: Collection[str] = (), *, scores: bool = True
    ) -> None:
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
            call = self._arrive("UNARY", UNKNOWN, UNKNOWN)
            return grpc.unary_unary_rpc_method_handler(lambda request, context: _refuse_unknown(call, context))
        if service not in self._services:
            return handler
        streams = handler.stream_stream is not None
        call = self._arrive("BIDI_STREAM" if streams else "UNARY", service, method)

        def deserialize(message: bytes) -> Any:
            call.received = True
            try:
                return handler.request_deserializer(message)
            except Exception:
                call.code = Code.INTERNAL  # gRPC's own answer to a message that does not parse
                self._rejected("invalid")
                raise

        if streams:
            return grpc.stream_stream_rpc_method_handler(
                lambda requests, context: self._stream(call, method, handler.stream_stream, requests, context),
                deserialize,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(call, method, handler.unary_unary, request, context),
            deserialize,
            handler.response_serializer,
        )

    def _arrive(self, kind: str, service: str, method: str) -> _Call:
        _arriving.call = call = _Call(self._metrics, self._rejected, kind, service, method)
        return call

    def _answer(self, call: _Call, method: str, behavior: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            response = behavior(request, context)
        except Exception as error:
            self._fail(call, method, context, error)
        call.code = _ending(context)
        return response

    def _stream(
        self, call: _Call, method: str, behavior: Any, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        call.received, call.code = True, Code.CANCELLED  # gRPC drops the iterator when the caller leaves
        try:
            yield from behavior(requests, context)
        except GeneratorExit:
            raise
        except Exception as error:
            self._fail(call, method, context, error)
        call.code = _ending(context)

    def _fail(self, call: _Call, method: str, context: grpc.ServicerContext, error: Exception) -> None:
        found = failure(error, method)
        call.code = found.code
        self._rejected(found.reason)
        found.abort(context)


def _ending(context: grpc.ServicerContext) -> grpc.StatusCode:
    """How a call that was answered ends: an answer nobody waits for is no success."""
    if context.is_active():
        return Code.OK
    return Code.DEADLINE_EXCEEDED if context.time_remaining() <= 0 else Code.CANCELLED


def _refuse_unknown(call: _Call, context: grpc.ServicerContext) -> None:
    call.code = Code.UNIMPLEMENTED
    context.abort(Code.UNIMPLEMENTED, "Method not found!")
