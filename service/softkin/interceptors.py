"""What every call of the outlier service passes through: counted, timed, and its errors turned into statuses."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import Any, Never

import grpc

from softkin import errors
from softkin.converters import RETRY_AFTER
from softkin.metrics import Metrics

log = logging.getLogger("softkin.server")

Code = grpc.StatusCode
STATUS_CODES: dict[type[errors.SoftkinError], grpc.StatusCode] = {
    errors.InvalidInputError: Code.INVALID_ARGUMENT,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.CancelledError: Code.CANCELLED,
    errors.OverloadedError: Code.RESOURCE_EXHAUSTED,
    errors.UnavailableError: Code.UNAVAILABLE,
    errors.DeviceError: Code.UNAVAILABLE,
    # None of these is about the request: a caller who meets one met a fault of the server.
    errors.BundleError: Code.INTERNAL,
    errors.DataError: Code.INTERNAL,
    errors.StateError: Code.INTERNAL,
    errors.RecipeError: Code.INTERNAL,
    errors.ExportError: Code.INTERNAL,
    errors.SoftkinError: Code.INTERNAL,
}
"""The status of every error; a subclass without an entry takes its base's."""

_REASONS = {
    Code.INVALID_ARGUMENT: "invalid",
    Code.NOT_FOUND: "not_found",
    Code.RESOURCE_EXHAUSTED: "queue_full",
    Code.UNAVAILABLE: "unavailable",
    Code.DEADLINE_EXCEEDED: "deadline",
    Code.CANCELLED: "cancelled",
    Code.INTERNAL: "internal",
}
_PRIVATE = (errors.DeviceError,)
_MAX_DETAIL_CHARS = 1000  # status messages travel in headers, which peers limit to 8 KiB


class CallEndedError(Exception):
    """The caller no longer waits: cancelled, disconnected or past the deadline."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code.name)
        self.code = code


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps the handlers of one service and leaves all others alone.

    Health and reflection must stay unwrapped: a wrapper hides the mark that lets health Watch run without a thread.

    Args:
        metrics: where calls are counted.
        service: full name of the service to wrap; its methods are unary.
    """

    def __init__(self, metrics: Metrics, service: str) -> None:
        self._metrics = metrics
        self._service = service

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap the handler, if it is one of the service's."""
        handler = continuation(handler_call_details)
        prefix = f"/{self._service}/"
        if handler is None or not handler_call_details.method.startswith(prefix):
            return handler
        method = handler_call_details.method.removeprefix(prefix)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            return self._answer(method, handler.unary_unary, request, context)

        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)

    def _answer(self, method: str, behavior: Any, request: Any, context: grpc.ServicerContext) -> Any:
        started = time.perf_counter()
        self._metrics.call_started(self._service, method)
        code = Code.OK
        try:
            return behavior(request, context)
        except Exception as error:
            code, details = _status(error, method)
            self._metrics.rejected(_REASONS[code])
            _abort(context, code, details, error)
        finally:
            self._metrics.call_handled(self._service, method, code.name, time.perf_counter() - started)


def status_code(error: BaseException) -> grpc.StatusCode:
    """The status for an error: its own entry in the table or its nearest base's; INTERNAL for all that is not ours."""
    if isinstance(error, CallEndedError):
        return error.code
    return next((STATUS_CODES[base] for base in type(error).__mro__ if base in STATUS_CODES), Code.INTERNAL)


def log_line(event: str, **fields: object) -> str:
    """One log line of key=value pairs; values with blanks are quoted."""
    pairs = {"event": event, **fields}.items()
    return " ".join(f"{k}={json.dumps(str(v)) if ' ' in str(v) else v}" for k, v in pairs)


def _status(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    code = status_code(error)
    if code is not Code.INTERNAL and not isinstance(error, _PRIVATE):
        return code, str(error)[:_MAX_DETAIL_CHARS]
    # What went wrong inside is for the log; the caller gets the line to quote.
    log_id = uuid.uuid4().hex[:12]
    log.error(log_line("error", method=method, code=code.name, log_id=log_id), exc_info=error)
    what = "internal error" if code is Code.INTERNAL else "the device failed"
    return code, f"{what}; log id {log_id}"


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str, error: Exception) -> Never:
    if isinstance(error, errors.OverloadedError):
        context.set_trailing_metadata(((RETRY_AFTER, str(round(error.retry_after_seconds * 1000))),))
    context.abort(code, details)
