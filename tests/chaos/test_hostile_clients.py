"""Clients that die, stall, flood or speak nonsense: the others are served, and nothing stays behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softkin.v1 import outlier_pb2 as pb

Code = grpc.StatusCode
SCORE = "/softkin.v1.OutlierService/Score"
STREAM = "/softkin.v1.OutlierService/ScoreStream"
CLIENT = """
import sys, threading, grpc
target, message, calls, method = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
channel = grpc.insecure_channel(target)
if method.endswith("Stream"):
    streams = [channel.stream_stream(method)(iter([message] * 20)) for _ in range(calls)]
else:
    futures = [channel.unary_unary(method).future(message, timeout=600) for _ in range(calls)]
print("sent", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("method", [SCORE, STREAM])
def test_clients_killed_in_the_middle_of_calls_leave_nothing_behind(serve, tmp_path, request_of, answers_well, method):
    """kill -9: the device stops, places in the queue are free, and the next caller is served."""
    os.mkfifo(tmp_path / "gate")
    process = serve("--hold", str(tmp_path / "gate"))
    message = request_of(2)
    if method == STREAM:
        message = pb.ScoreStreamRequest(request=message)
    arguments = [process.target, message.SerializeToString().hex(), "4" if method == STREAM else "40", method]
    rows = 4 * 20 * 2 if method == STREAM else 80
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", CLIENT, *arguments], stdout=subprocess.PIPE) as client:
            try:
                assert client.stdout.readline() == b"sent\n"
                process.wait_for_pending_rows(rows)
            finally:
                client.kill()

        process.wait_for_pending_rows(0)
    (tmp_path / "gate").open("w").close()
    answers_well(process)


def test_a_reader_that_does_not_read_holds_only_its_window(serve, request_of, answers_well):
    """Its answers pile up in the transport's window and no further; everybody else is served at once."""
    process = serve()
    sent = [0]
    stopped = threading.Event()

    def messages():
        while not stopped.is_set() and sent[0] < 200_000:
            sent[0] += 1
            yield pb.ScoreStreamRequest(request=request_of(64)).SerializeToString()

    stream = process.channel.stream_stream(STREAM)(messages())
    next(stream)
    before = -1
    while sent[0] != before:  # until the server has stopped reading
        before = sent[0]
        stopped.wait(1.0)

    for _ in range(20):
        answers_well(process)
    stopped.set()
    stream.cancel()

    assert before < 200_000
    process.wait_for_pending_rows(0)


def test_a_thousand_idle_connections_disturb_nobody(serve, answers_well):
    """They take a file descriptor each, no thread."""
    process = serve()
    threads = _threads(process)
    idle = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(1000)]

    answers_well(process)
    grown = _threads(process) - threads
    for connection in idle:
        connection.close()
    answers_well(process)

    assert grown < 20


def test_random_bytes_at_the_port_disturb_nobody(serve, answers_well):
    """Also after a valid HTTP/2 preface."""
    process = serve()
    for seed in range(50):
        noise = bytes((seed * 7919 + i * 104_729) % 256 for i in range(2000))
        with socket.create_connection(("127.0.0.1", process.port)) as connection:
            connection.sendall((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if seed % 2 else b"") + noise)

    answers_well(process)


@pytest.fixture(scope="module")
def raw():
    """Sends bytes as they are to a server shared by all examples, and gives back code and details of a refusal."""
    from serving import Process

    process = Process(seconds=300)
    method = process.channel.unary_unary(SCORE)

    def call(message):
        try:
            method(message, timeout=60)
        except grpc.RpcError as e:
            return e.code(), e.details()
        return None, ""

    yield call
    process.close()


FINE = st.builds(
    pb.ScoreRequest,
    detector=st.text(max_size=20),
    version=st.text(max_size=20),
    label=st.text(max_size=20),
    inputs=st.builds(
        pb.Tensor,
        dtype=st.integers(0, 9),
        shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=12),
        data=st.binary(max_size=300),
    ),
    alpha=st.none() | st.floats(),
    num_neighbors=st.integers(0, 2**32 - 1),
    guarantee=st.integers(0, 9),
    confidence=st.none() | st.floats(),
    smoothing_seed=st.none() | st.integers(0, 2**64 - 1),
).map(pb.ScoreRequest.SerializeToString)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=FINE | st.binary(max_size=300))
def test_no_message_whatever_is_in_it_finds_a_fault_of_the_server(raw, message):
    """Every refusal is the caller's: INVALID_ARGUMENT or NOT_FOUND, also for bytes that do not parse."""
    code, details = raw(message)

    assert code in {None, Code.INVALID_ARGUMENT, Code.NOT_FOUND}, details
    assert "log id" not in details


def _threads(process) -> int:
    return len(os.listdir(f"/proc/{process.popen.pid}/task"))
