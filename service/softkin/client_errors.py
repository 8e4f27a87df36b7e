"""What a status means to a client: the error that the server's own code would have raised."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from softkin.errors import (
    AuthenticationError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    SoftkinError,
    UnavailableError,
    UnsupportedError,
)
from softkin.statuses import RETRY_AFTER

_OWN_WORDS: dict[grpc.StatusCode, type[SoftkinError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}

_OTHER_NAME = "; give the name that is in the server's certificate (tls_server_name)"
_NO_ANSWER = "; what listens there does not answer: see whether that server hangs"
_NO_SUCH_NAME = "; give HOST:PORT, with a name that this machine can resolve"
_UNREACHED = {
    "Hostname Verification": _OTHER_NAME,
    "is not in peer certificate": _OTHER_NAME,
    "certificate has expired": "; renew the server's certificate, or set this machine's clock",
    "certificate is not yet valid": "; give the server one that is valid by now, or set this machine's clock",
    "CERTIFICATE_VERIFY_FAILED": "; give the authority that signed the server's certificate (tls_ca)",
    "WRONG_VERSION_NUMBER": "; it speaks plaintext: leave tls_ca out, or start it with --tls-cert and --tls-key",
    "Socket closed": "; if the server speaks TLS, give tls_ca, and tls_cert and tls_key if it asks for a certificate: "
    "one that has not expired, of an authority in its tls_client_ca",
    "Endpoint closing": _NO_ANSWER,
    "before receiving SETTINGS": _NO_ANSWER,
    "backend unhealthy": "; none of the servers there is ready: they start, or they stop",
    "errors resolving": _NO_SUCH_NAME,
    "DNS resolution failed": _NO_SUCH_NAME,
    "Connection refused": "; no server listens there: start one, or give its HOST:PORT",
    "Failed parsing HTTP/2": "; no gRPC server answers there: give the port of {port}, not that of --metrics-port",
}
"""Words of gRPC, of 1.76 and of later ones, for a server that was not reached, and what may help.

`{port}` is the server's option for its port.
"""


_TOO_LARGE = "max_message_bytes", "larger than max", "exceeds maximum size", "metadata size exceeds hard limit"
"""Words of the server, of gRPC and of gRPC for Java for a message that is too large, and of gRPC for such a token."""
_TAKES_NO_STREAMS = "max_streams = 0"
"""Words of a server that takes no streams. gRPC itself has the same status for a method that does not exist."""
UNSTATED_DELAY_SECONDS = 1.0
"""What callers are told to wait where somebody on the way limits them and does not say for how long."""


def call_error(e: Any, target: str, port: str = "--port") -> SoftkinError:
    """The error for a call that failed.

    Args:
        e: the RpcError of grpc or of grpc.aio.
        target: what was called.
        port: option of `softkin serve` for the port that was meant.
    """
    # Read as pairs, because dict takes the metadata of grpc.aio for a mapping, which it is not in some versions.
    milliseconds = dict(iter(e.trailing_metadata() or ())).get(RETRY_AFTER, "")
    # Proxies write there what they like; a negative number states no delay.
    retry_after = int(milliseconds) / 1000 if re.fullmatch("[0-9]{1,9}", milliseconds) else None
    return _error(e.code(), e.details() or "", retry_after, target, port)


def answer_error(status: Status, target: str) -> SoftkinError:
    """The error for one request of a stream."""
    retry = RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return _error(_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN), status.message, retry_after, target)


def counted_from(error: SoftkinError, start: int) -> SoftkinError:
    """The error with its row counted in the array that the caller gave; the server saw its rows from `start` on."""
    if not isinstance(error, InvalidInputError):
        return error
    message = re.sub("^row ([0-9]+)(?= has )", lambda found: f"row {start + int(found[1])}", error.message)
    return InvalidInputError(error.field, message)


def _error(
    code: grpc.StatusCode, details: str, retry_after_seconds: float | None, target: str, port: str = ""
) -> SoftkinError:
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, colon, message = details.partition(": ")
        return InvalidInputError(field, message) if colon else InvalidInputError("request", f"{target}: {details}")
    if code in _OWN_WORDS:
        return _OWN_WORDS[code](details)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return AuthenticationError(f"{target}: {details}; give one that the server takes (token, or --token-file)")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return AuthenticationError(f"{target}: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if retry_after_seconds is None and any(words in details for words in _TOO_LARGE):
            return InvalidInputError("message", f"{target}: {details}")  # waiting does not help
        return OverloadedError(
            f"{target}: {details}", UNSTATED_DELAY_SECONDS if retry_after_seconds is None else retry_after_seconds
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        remedy = next((remedy for words, remedy in _UNREACHED.items() if words in details), "")
        return UnavailableError(f"{target}: {details}{remedy.format(port=port)}", retry_after_seconds)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnavailableError(f"{target}: {details}; allow more time (timeout_seconds)")
    if code is grpc.StatusCode.UNIMPLEMENTED and _TAKES_NO_STREAMS in details:
        return UnsupportedError(f"{target}: {details}")
    remedy = "; is it the port of a softkin server that scores, as new as this client?"
    return SoftkinError(f"{target}: {code.name}: {details}{remedy if code is grpc.StatusCode.UNIMPLEMENTED else ''}")
