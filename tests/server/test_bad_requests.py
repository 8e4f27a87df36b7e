"""Every wrong request is refused with the right status and a message that names field, value and what is allowed."""

from __future__ import annotations

import logging
import re
import struct

import grpc
import numpy as np
import pytest

from garbage import frames_in_garbage
from softkin.converters import array_to_tensor
from softkin.errors import DeviceError, ExportError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

Code = grpc.StatusCode
ONE = np.ones((1, 2, 3), np.float32)
F32 = pb.DATA_TYPE_FLOAT32


def one_row(**fields):
    """A right request but for `fields`."""
    return pb.ScoreRequest(inputs=array_to_tensor(ONE), **fields)


def tensor(dtype, shape, data):
    """A request whose inputs are this tensor."""
    return pb.ScoreRequest(inputs=pb.Tensor(dtype=dtype, shape=shape, data=data))


def array(values):
    """A request whose inputs are this array."""
    return pb.ScoreRequest(inputs=array_to_tensor(values))


def with_value(value):
    """A request whose second row has this value."""
    rows = np.ones((3, 2, 3), np.float32)
    rows[1, 0, 2] = value
    return array(rows)


BAD = {
    "no inputs": (pb.ScoreRequest(), "inputs: not set; send the rows"),
    "dtype not set": (
        tensor(pb.DATA_TYPE_UNSPECIFIED, [1, 2, 3], b""),
        "inputs.dtype: got 0 (DATA_TYPE_UNSPECIFIED); allowed: DATA_TYPE_FLOAT32, DATA_TYPE_FLOAT64,",
    ),
    "unknown dtype": (tensor(77, [1, 2, 3], b""), "inputs.dtype: got 77 (unknown); allowed: DATA_TYPE_FLOAT32,"),
    "wrong dtype": (array(np.ones((1, 2, 3), np.uint8)), "inputs: dtype is uint8, this detector takes float32"),
    "wrong shape": (
        array(np.ones((1, 3, 2), np.float32)),
        "inputs: shape is [1, 3, 2], this detector takes [rows, 2, 3]",
    ),
    "rank 0": (tensor(F32, [], struct.pack("<f", 1)), "inputs: shape is [], this detector takes [rows, 2, 3]"),
    "rank 2": (array(np.ones((1, 6), np.float32)), "inputs: shape is [1, 6], this detector takes [rows, 2, 3]"),
    "rank 9": (tensor(F32, [1] * 9, bytes(4)), "inputs.shape: got 9 axes; at most 8"),
    "too few bytes": (tensor(F32, [1, 2, 3], bytes(23)), "inputs.data: has 23 bytes, but shape [1, 2, 3] of float32"),
    "too many bytes": (tensor(F32, [1, 2, 3], bytes(25)), "inputs.data: has 25 bytes, but shape [1, 2, 3] of float32"),
    "negative axis": (tensor(F32, [1, -2, -3], bytes(24)), "inputs.shape: got [1, -2, -3]; no axis may be negative"),
    "product of axes wraps around to 0": (
        tensor(F32, [2, 2**31, 2**32], b""),
        "inputs.data: has 0 bytes, but shape [2, 2147483648, 4294967296] of float32 takes 73786976294838206464",
    ),
    "no elements but unindexable axes": (tensor(F32, [0, 2**62, 2**62], b""), "these axes are too long"),
    "no rows": (array(np.ones((0, 2, 3), np.float32)), "inputs: there are no rows; send at least 1"),
    "too many rows": (
        array(np.ones((9, 2, 3), np.float32)),
        "inputs.shape: got 9 rows; this server takes at most max_rows = 8",
    ),
    "NaN": (with_value(np.nan), "inputs: row 1 has NaN or infinity"),
    "infinity": (with_value(np.inf), "inputs: row 1 has NaN or infinity"),
    "alpha 0": (one_row(alpha=0), "alpha: got 0; it is a false-alarm rate and must lie strictly in (0, 1)"),
    "alpha 1": (one_row(alpha=1), "alpha: got 1; it is a false-alarm rate and must lie strictly in (0, 1)"),
    "alpha 2": (one_row(alpha=2), "alpha: got 2;"),
    "alpha -1": (one_row(alpha=-1), "alpha: got -1;"),
    "alpha NaN": (one_row(alpha=float("nan")), "alpha: got nan;"),
    "alpha below the smallest p-value": (one_row(alpha=0.009), "alpha: got 0.009, but 99 calibration rows"),
    "unknown guarantee": (
        one_row(guarantee=9),
        "guarantee: got 9; allowed: GUARANTEE_MARGINAL, GUARANTEE_CERTIFIED, GUARANTEE_CLASS_CONDITIONAL, "
        "GUARANTEE_FALSE_DISCOVERY_RATE",
    ),
    "confidence 0": (one_row(confidence=0), "confidence: got 0; it must lie strictly in (0, 1)"),
    "confidence 1": (one_row(confidence=1), "confidence: got 1; it must lie strictly in (0, 1)"),
    "confidence -1": (one_row(confidence=-1), "confidence: got -1; it must lie strictly in (0, 1)"),
    "confidence NaN": (one_row(confidence=float("nan")), "confidence: got nan; it must lie strictly in (0, 1)"),
    "too few rows to certify": (
        one_row(guarantee=pb.GUARANTEE_CERTIFIED, alpha=0.02),
        "alpha: got 0.02, but 99 calibration rows certify nothing below 0.0298067 at confidence 0.95; use alpha >= "
        "0.0298067, a lower confidence, or at least 149 calibration rows",
    ),
    "too few rows of a class": (
        one_row(guarantee=pb.GUARANTEE_CLASS_CONDITIONAL, alpha=0.04),
        "alpha: got 0.04, but class 'sneaker [new]' has only 19 calibration rows, which cannot give a p-value below",
    ),
    "too many neighbours": (one_row(num_neighbors=6), "num_neighbors: got 6; this server gives 0 to max"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_request_is_refused_with_a_message_that_helps(shared_server, name):
    """INVALID_ARGUMENT; the message starts with the field and holds the value and what is allowed."""
    request, message = BAD[name]

    with pytest.raises(grpc.RpcError) as e:
        shared_server.stub.Score(request, timeout=20)

    assert e.value.code() is Code.INVALID_ARGUMENT
    assert message in e.value.details()


def test_a_wrong_request_reaches_no_detector_row_counter(start):
    """Refused rows are not scored rows."""
    detector = StandIn()
    running = start(detector, max_rows=8, max_pending_rows=8, max_neighbors=5)

    for request, _ in BAD.values():
        with pytest.raises(grpc.RpcError):
            running.stub.Score(request, timeout=20)

    assert detector.rows_scored == 0
    assert running.sample("softkin_rejected_total", reason="invalid") == len(BAD)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"detector": "b"}, "no detector named 'b'; loaded: standin version 1"),
        ({"detector": "standin", "version": "2"}, "no version '2' of that detector; loaded: standin version 1"),
        ({"version": "x" * 3000}, "no version 'xxxx"),
    ],
    ids=["name", "version", "very long version"],
)
@pytest.mark.parametrize("method", ["Score", "GetDetector", "GetDrift"])
def test_an_unknown_detector_is_not_found_and_the_message_lists_what_is_loaded(shared_server, method, names, message):
    """NOT_FOUND, with the detectors that are there."""
    request = one_row(**names) if method == "Score" else getattr(pb, f"{method}Request")(**names)

    with pytest.raises(grpc.RpcError) as e:
        getattr(shared_server.stub, method)(request, timeout=20)

    assert e.value.code() is Code.NOT_FOUND
    assert message in e.value.details()
    assert "loaded: standin version 1" in e.value.details()


def test_an_empty_name_is_ambiguous_when_several_detectors_are_loaded(start, rows):
    """INVALID_ARGUMENT, listing the names."""
    running = start(StandIn("a"), StandIn("b"))

    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1))

    assert e.value.code() is Code.INVALID_ARGUMENT
    assert e.value.details() == "detector: empty, but several are loaded; name one of: a, b"


@pytest.mark.parametrize(
    ("size", "details"),
    [
        (5000, r"the message has 50\d\d bytes; max_message_bytes = 4096: send several smaller ones"),
        (9000, r".*larger than max.*8192.*"),
    ],
    ids=["over", "more than twice over"],
)
def test_a_message_over_the_limit_is_refused(shared_server, size, details):
    """max_message_bytes bounds what a peer can make the server hold; far beyond it gRPC itself cuts the call off."""
    with pytest.raises(grpc.RpcError) as e:
        shared_server.stub.Score(tensor(F32, [1, 2, 3], bytes(size)), timeout=20)

    assert e.value.code() is Code.RESOURCE_EXHAUSTED
    assert re.fullmatch(details, e.value.details())


@pytest.mark.parametrize(
    ("failure", "code", "text"),
    [
        (ValueError("secret /path/to/weights"), Code.INTERNAL, r"internal error; log id ([0-9a-f]{12})"),
        (ExportError("secret"), Code.INTERNAL, r"internal error; log id ([0-9a-f]{12})"),
        (DeviceError("secret CUDA failure"), Code.UNAVAILABLE, r"the device failed; log id ([0-9a-f]{12})"),
    ],
    ids=["not ours", "ours but not about the request", "device"],
)
def test_a_fault_of_the_server_tells_the_caller_nothing_but_a_log_id(start, rows, caplog, failure, code, text):
    """Constant text plus an id; the log has the same id with the whole traceback."""
    running = start(StandIn(failure=failure))

    with caplog.at_level(logging.ERROR, "softkin.server"), pytest.raises(grpc.RpcError) as e:
        running.score(rows(1))

    assert e.value.code() is code
    match = re.fullmatch(text, e.value.details())
    assert match
    [record] = caplog.records
    assert f"event=error method=Score code={code.name} log_id={match[1]}" == record.getMessage()
    assert record.exc_info[1] is failure


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\xff" * 100, id="no message"),
        pytest.param(tensor(F32, [1, 2, 3], bytes(5000)).SerializeToString(), id="too large"),
        *(pytest.param(request.SerializeToString(), id=name) for name, (request, _) in BAD.items()),
    ],
)
def test_a_refused_message_gives_its_memory_back_at_once(shared_server, message):
    """It may be 64 MB, and the garbage collector comes by only after hundreds of such calls."""
    call = shared_server.channel.unary_unary("/softkin.v1.OutlierService/Score")

    def refused():
        with pytest.raises(grpc.RpcError):
            call(message, timeout=20)

    assert frames_in_garbage(refused) == []


def test_a_refused_message_of_a_stream_leaves_no_garbage(shared_server):
    """An answer says so, and the stream goes on."""
    stream = shared_server.channel.stream_stream(
        "/softkin.v1.OutlierService/ScoreStream", response_deserializer=pb.ScoreStreamResponse.FromString
    )

    def refused():
        [response] = stream(iter([b"\xff" * 100]), timeout=20)
        assert response.answers[0].HasField("error")

    assert frames_in_garbage(refused) == []


def test_the_server_goes_on_after_a_fault(start, rows):
    """One failed request costs nobody else anything."""
    detector = StandIn(failure=RuntimeError("once"))
    running = start(detector)
    with pytest.raises(grpc.RpcError):
        running.score(rows(1))
    detector.failure = None

    response = running.score(rows(2))

    assert len(response.p_value) == 2
    assert running.sample("softkin_pending_rows") == 0
