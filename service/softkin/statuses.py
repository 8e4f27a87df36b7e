"""Every error as a gRPC status: one table, and the details that travel with it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import lru_cache

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from softkin import errors
from softkin.logs import log, log_line

Code = grpc.StatusCode
STATUS_CODES: dict[type[errors.SoftkinError], grpc.StatusCode] = {
    errors.InvalidInputError: Code.INVALID_ARGUMENT,
    errors.MessageTooLargeError: Code.RESOURCE_EXHAUSTED,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.AuthenticationError: Code.UNAUTHENTICATED,
    errors.ConflictError: Code.ALREADY_EXISTS,
    errors.PreconditionError: Code.FAILED_PRECONDITION,
    errors.UnsupportedError: Code.UNIMPLEMENTED,
    errors.CancelledError: Code.CANCELLED,
    errors.ExpiredError: Code.DEADLINE_EXCEEDED,
    errors.OverloadedError: Code.RESOURCE_EXHAUSTED,
    errors.UnmeetableError: Code.RESOURCE_EXHAUSTED,
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

REASONS = {
    Code.INVALID_ARGUMENT: "invalid",
    Code.NOT_FOUND: "not_found",
    Code.UNAUTHENTICATED: "unauthenticated",
    Code.ALREADY_EXISTS: "invalid",
    Code.FAILED_PRECONDITION: "invalid",
    Code.UNIMPLEMENTED: "unsupported",
    Code.RESOURCE_EXHAUSTED: "queue_full",
    Code.UNAVAILABLE: "unavailable",
    Code.DEADLINE_EXCEEDED: "deadline",
    Code.CANCELLED: "cancelled",
    Code.INTERNAL: "internal",
}
"""Why a request was not scored, as metrics say it."""
RETRY_AFTER = "grpc-retry-pushback-ms"
"""Trailer with the milliseconds to wait; gRPC's own retry mechanism obeys it (gRFC A6)."""
STATUS_DETAILS = "grpc-status-details-bin"
"""Trailer with the google.rpc.Status, where every gRPC library looks for it."""

DEADLINE_TOLERANCE_SECONDS = 0.02
"""gRPC ends a call a little before the clock that is asked here says so."""
DEADLINE_ROUNDING = 0.01
"""Most of a deadline by which gRPC lengthens it on its way here: it travels in few digits, rounded up. The caller's own
clock ends the call sooner, and the server hears of that as of any cancellation."""

_MAX_DETAIL_BYTES = 1000
"""Most bytes of a status message in UTF-8. It travels in headers, which peers limit to 8 KiB: there each of these may
take three bytes, and the message comes once or twice more in the details."""


@dataclass(frozen=True)
class Failure:
    """What a caller is told about an error, and what is counted."""

    code: grpc.StatusCode
    message: str
    reason: str
    details: tuple[Message, ...] = ()
    retry_after_seconds: float | None = None

    def to_proto(self) -> Status:
        """As google.rpc.Status."""
        status = Status(code=self.code.value[0], message=self.message)
        for detail in self.details:
            status.details.add().Pack(detail)
        return status

    def abort(self, context: grpc.ServicerContext) -> None:
        """End the call with it: raises."""
        trailers: list[tuple[str, str | bytes]] = []
        if self.details:
            trailers.append((STATUS_DETAILS, self.to_proto().SerializeToString()))
        if self.retry_after_seconds is not None:
            trailers.append((RETRY_AFTER, str(round(self.retry_after_seconds * 1000))))
        if trailers:
            context.set_trailing_metadata(tuple(trailers))
        context.abort(self.code, self.message)


def end_code(context: grpc.ServicerContext, seconds: float) -> grpc.StatusCode:
    """How a call ended that is no longer active, so many seconds after it arrived: past its deadline, or cancelled."""
    remaining = context.time_remaining()
    tolerance = DEADLINE_TOLERANCE_SECONDS + DEADLINE_ROUNDING * (seconds + remaining)
    return Code.DEADLINE_EXCEEDED if remaining <= tolerance else Code.CANCELLED


def status_code(error: BaseException) -> grpc.StatusCode:
    """The status for an error: its own entry in the table or its nearest base's; INTERNAL for all that is not ours."""
    return next((STATUS_CODES[base] for base in type(error).__mro__ if base in STATUS_CODES), Code.INTERNAL)


def failure(error: BaseException, method: str, request_id: str = "") -> Failure:
    """What the caller of `method` is told: the error's own words, or a log id where they would reveal internals."""
    code = status_code(error)
    reason = _reason(error, code)
    if code is Code.INTERNAL or isinstance(error, errors.DeviceError):
        log_id = uuid.uuid4().hex[:12]
        named = {"request_id": request_id} if request_id else {}
        log.error(log_line("error", method=method, code=code.name, log_id=log_id, **named), exc_info=error)
        what = "internal error" if code is Code.INTERNAL else "the device failed"
        return Failure(code, f"{what}; log id {log_id}", reason, (RequestInfo(request_id=log_id),))
    message = _cut(str(error))
    if isinstance(error, errors.InvalidInputError):
        violation = BadRequest.FieldViolation(field=error.field, description=_cut(error.message))
        return Failure(code, message, reason, (BadRequest(field_violations=[violation]),))
    if isinstance(error, errors.UnavailableError) and error.retry_after_seconds is not None:
        return Failure(code, message, reason, (_retry_info(error.retry_after_seconds),), error.retry_after_seconds)
    return Failure(code, message, reason)


def _cut(text: str) -> str:
    # Paths may hold what UTF-8 cannot spell, and protobuf would refuse it.
    return text.encode(errors="replace")[:_MAX_DETAIL_BYTES].decode(errors="ignore")


@lru_cache  # under overload it is the same thousands of times a second
def _retry_info(seconds: float) -> RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    return RetryInfo(retry_delay=delay)


def _reason(error: BaseException, code: grpc.StatusCode) -> str:
    if isinstance(error, errors.UnmeetableError):
        return "unmeetable"
    if isinstance(error, errors.MessageTooLargeError):
        return "too_large"
    return REASONS[code]
