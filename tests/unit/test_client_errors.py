"""What a client makes of statuses that others than a softkin server send: proxies, and gRPC itself."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest
from google.rpc.status_pb2 import Status

from softkin.client_errors import answer_error, call_error
from softkin.errors import InvalidInputError, OverloadedError, UnavailableError

Code = grpc.StatusCode


def failed(code, details, *trailers):
    """The error of a call that ended so."""
    call = SimpleNamespace(code=lambda: code, details=lambda: details, trailing_metadata=lambda: trailers)
    return call_error(call, "a:1")


@pytest.mark.parametrize("delay", ["soon", "", "1.5", "-1", "nan", "inf", "\N{SUPERSCRIPT TWO}", "9" * 400])
def test_a_delay_that_is_no_number_is_none(delay):
    """Clients must not fail on what a proxy writes, and -1 is how a server says that it states none."""
    error = failed(Code.UNAVAILABLE, "gone", ("grpc-retry-pushback-ms", delay))

    assert (type(error), error.retry_after_seconds) == (UnavailableError, None)


@pytest.mark.parametrize(("delay", "seconds"), [("0", 0.0), ("1500", 1.5), ("999999999", 999_999.999)])
def test_a_delay_is_told_in_seconds(delay, seconds):
    """Also none at all."""
    error = failed(Code.RESOURCE_EXHAUSTED, "full", ("grpc-retry-pushback-ms", delay))

    assert (type(error), error.retry_after_seconds) == (OverloadedError, seconds)


@pytest.mark.parametrize("details", ["rate limit exceeded", "", "Bandwidth exhausted or memory limit exceeded"])
def test_a_limit_on_the_way_is_an_overload_and_no_fault_of_the_request(details):
    """Proxies limit rates without a word on how long to wait; callers who stop at wrong input would never try again."""
    in_a_stream = answer_error(Status(code=Code.RESOURCE_EXHAUSTED.value[0], message=details), "a:1")

    for error in failed(Code.RESOURCE_EXHAUSTED, details), in_a_stream:
        assert (type(error), str(error)) == (OverloadedError, f"a:1: {details}")
        assert error.retry_after_seconds == 1.0


@pytest.mark.parametrize(
    "details",
    [
        "the message has 9 bytes; max_message_bytes = 8: send several smaller ones",
        "CLIENT: Sent message larger than max (9 vs. 8)",
        "SERVER: Received message larger than max (9 vs. 8)",
        "Decompressed message larger than max",
        "grpc: received message larger than max (9 vs. 8)",
        "gRPC message exceeds maximum size 8: 9",
        "received metadata size exceeds hard limit (value length 20007 vs. 16384)",
    ],
)
def test_a_message_that_is_too_large_stays_so(details):
    """No wait helps: in the words of the server, of gRPC for C, Go and Java."""
    with pytest.raises(InvalidInputError, match=r"^message: a:1: "):
        raise failed(Code.RESOURCE_EXHAUSTED, details)


def test_wrong_input_is_named_where_the_status_names_it():
    """Another server may not."""
    assert failed(Code.INVALID_ARGUMENT, "alpha: got 2").field == "alpha"
    assert str(failed(Code.INVALID_ARGUMENT, "no")) == "request: a:1: no"


@pytest.mark.parametrize(
    ("details", "remedy"),
    [
        ("Peer name a is not in peer certificate", "(tls_server_name)"),
        ("Hostname Verification Check failed", "(tls_server_name)"),
        ("DNS resolution failed for a:1: no data", "give HOST:PORT, with a name that this machine can resolve"),
        ("errors resolving a:1: [no data]", "give HOST:PORT, with a name that this machine can resolve"),
    ],
)
def test_a_server_that_is_not_reached_comes_with_the_remedy(details, remedy):
    """In the words of gRPC 1.76, the oldest that will do, and of newer ones."""
    message = str(failed(Code.UNAVAILABLE, details))

    assert message.startswith(f"a:1: {details}; give ")
    assert message.endswith(remedy)


@pytest.mark.parametrize(
    "words", ["Handshake read failed (Endpoint closing)", "attempt timed out before receiving SETTINGS frame"]
)
def test_a_server_that_hangs_is_said_to(words):
    """It is stopped (SIGSTOP), or has no memory: the kernel accepts the connection, and nobody answers."""
    error = failed(Code.UNAVAILABLE, f"connections to all backends failing; last error: UNAVAILABLE: a:1: {words}")

    assert str(error).endswith("; what listens there does not answer: see whether that server hangs")
