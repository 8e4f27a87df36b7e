"""Live, ready, draining, stopped: what callers and probes see at each step."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

import standin_bundles
from softkin import converters
from softkin.call_threads import CallThreads
from softkin.converters import array_to_tensor
from softkin.errors import ConflictError, InvalidInputError, SoftkinError, StateError
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.settings import ServerSettings
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn

Code = grpc.StatusCode
Status = health_pb2.HealthCheckResponse
READY = "softkin.v1.OutlierService"


def check(running, service):
    """What the health service says."""
    return running.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status


def test_health_goes_from_live_to_ready_to_draining_in_check_and_watch(start):
    """SERVING comes only after warm-up; draining turns every status to NOT_SERVING at once."""
    detector = StandIn()
    running = start(detector, ready=False)
    watch = running.health.Watch(health_pb2.HealthCheckRequest(service=READY))
    seen = [(next(watch).status, check(running, READY), check(running, ""), detector.warmed_up)]

    running.server.make_ready()
    seen.append((next(watch).status, check(running, READY), check(running, ""), detector.warmed_up))
    running.server._health.enter_graceful_shutdown()
    seen.append((next(watch).status, check(running, READY), check(running, ""), detector.warmed_up))

    assert seen == [
        (Status.NOT_SERVING, Status.NOT_SERVING, Status.SERVING, False),
        (Status.SERVING, Status.SERVING, Status.SERVING, True),
        (Status.NOT_SERVING, Status.NOT_SERVING, Status.NOT_SERVING, True),
    ]


def test_the_health_of_an_unknown_service_is_not_found(server):
    """As grpc.health.v1 says."""
    with pytest.raises(grpc.RpcError) as e:
        check(server, "no.such.Service")

    assert e.value.code() is Code.NOT_FOUND


def test_a_server_that_is_not_ready_says_so_and_describes_nothing(start, rows):
    """UNAVAILABLE, the one status that callers retry."""
    running = start(StandIn(), ready=False)

    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1))

    assert e.value.code() is Code.UNAVAILABLE
    assert e.value.details() == "the server is starting; retry when the health service reports SERVING"
    assert len(running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20).detectors) == 0


def test_list_detectors_is_in_order_of_name_then_version(start):
    """Whatever the order of loading."""
    running = start(StandIn("b", "1"), StandIn("a", "2"), StandIn("a", "1"), max_rows=17)

    answer = running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20)

    assert [(d.name, d.version) for d in answer.detectors] == [("a", "1"), ("a", "2"), ("b", "1")]
    assert answer.limits.max_rows == 17


def test_a_drain_finishes_what_is_in_flight_and_refuses_what_comes_later(start, rows, gate):
    """stop() returns only when the last answer is out; nobody in flight sees an error."""
    detector = StandIn(gate=gate)
    running = start(detector, workers=1)
    in_flight = [running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(2))), timeout=60) for _ in "abc"]
    running.until(lambda: running.server.pending_requests == 3)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()

    def refused():
        with grpc.insecure_channel(running.target) as channel:
            call = channel.unary_unary(f"/{READY}/ListDetectors")
            try:
                call(b"", timeout=5)
            except grpc.RpcError as e:
                return e.code() is Code.UNAVAILABLE
            return False

    running.until(refused)
    still_open = stopping.is_alive()
    gate.set()

    assert still_open
    assert [len(f.result(timeout=20).p_value) for f in in_flight] == [2, 2, 2]
    stopping.join(timeout=20)
    assert not stopping.is_alive()
    assert running.server.pending_requests == 0


def test_a_full_server_that_stops_says_that_it_stops(start, rows, gate):
    """Told to come back later, callers would wait for a server that is gone by then."""
    detector = StandIn(gate=gate)
    running = start(detector, max_pending_requests=1, workers=1)
    inside = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60)
    assert detector.entered.acquire(timeout=20)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    running.until(lambda: running.server._traffic._refusing)

    with pytest.raises(grpc.RpcError) as e:
        running.score(rows(1))
    gate.set()
    stopping.join(timeout=20)

    assert e.value.code() is Code.UNAVAILABLE
    assert e.value.details() == "the server is stopping; retry on another one"
    assert len(inside.result(timeout=20).p_value) == 1
    assert running.server.abandoned_requests == 0


def test_requests_are_still_answered_during_the_drain_delay(start, rows):
    """Load balancers need time to notice NOT_SERVING; stop_now() ends the delay."""
    running = start(StandIn(), drain_delay_seconds=600)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    running.until(lambda: check(running, READY) == Status.NOT_SERVING)

    answered = len(running.score(rows(3)).p_value)
    running.server.stop_now()
    stopping.join(timeout=20)

    assert answered == 3
    assert not stopping.is_alive()


def test_the_grace_period_bounds_a_drain(start, rows, gate):
    """A request that outlasts it is cancelled, and stop() returns."""
    detector = StandIn(gate=gate)
    running = start(detector, drain_grace_seconds=0.2)
    stuck = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60)
    assert detector.entered.acquire(timeout=20)

    running.server.stop()

    assert running.server.abandoned_requests == 1
    assert detector.rows_scored == 0
    assert stuck.exception(timeout=20).code() in (Code.CANCELLED, Code.UNAVAILABLE)


def test_an_answer_that_is_computed_and_not_sent_is_abandoned_too(start, rows, gate, monkeypatch):
    """It has left the gate, whose rows are free for others."""
    encode, encoding = converters.share_to_proto, threading.Semaphore(0)

    def slow(share):
        encoding.release()
        gate.wait()
        return encode(share)

    monkeypatch.setattr(converters, "share_to_proto", slow)
    running = start(StandIn())
    stuck = running.stub.Score.future(pb.ScoreRequest(inputs=array_to_tensor(rows(1))), timeout=60)
    assert encoding.acquire(timeout=20)
    pending = running.server.pending_requests
    stopping = threading.Thread(target=running.server.stop_now)
    stopping.start()
    failure = stuck.exception(timeout=20)
    gate.set()
    stopping.join(timeout=20)

    assert (pending, running.server.abandoned_requests) == (0, 1)
    assert failure.code() in (Code.CANCELLED, Code.UNAVAILABLE)


def test_wait_returns_when_the_server_has_stopped(start):
    """And only then."""
    running = start(StandIn())
    waiting = threading.Thread(target=running.server.wait)
    waiting.start()
    waiting.join(timeout=0.1)
    before = waiting.is_alive()

    running.server.stop()
    waiting.join(timeout=20)

    assert before
    assert not waiting.is_alive()


def test_stopping_closes_all_ports(start):
    """The metrics port goes last, but it goes."""
    running = start(StandIn(), admin_port=0)
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.status == 200

    running.server.stop()

    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=20)
    for port in (running.server.port, running.server.metrics_port, running.server.admin_port):
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_machine_that_has_not_enough_threads_is_told_so_and_none_is_left_waiting(monkeypatch):
    """Threads that wait for those that never come would keep the process from ending."""
    start_thread, begun = threading.Thread.start, []

    def start(thread):
        if len(begun) == 5:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start_thread(thread)

    threads = CallThreads(9, "test")
    monkeypatch.setattr(threading.Thread, "start", start)

    with pytest.raises(SoftkinError, match=r"cannot start 9 threads \(can't start new thread\).*lower max_pending_req"):
        threads.start_all()

    for thread in begun:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in begun)


def test_a_server_whose_alpha_no_detector_can_honour_does_not_start():
    """99 calibration rows cannot flag anything at 0.001."""
    registry = Registry()
    registry.add(StandIn())
    settings = ServerSettings(host="127.0.0.1", port=0, metrics_port=0, alpha=0.001)
    server = Server(settings, registry, Metrics(CollectorRegistry(), version="0"))

    with pytest.raises(InvalidInputError, match=r"alpha: got 0.001, but 99 calibration rows") as e:
        server.start()

    assert str(e.value).endswith("(detector 'standin' version '1')"), "of several, the others may honour it"

    server.wait()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guarantee": "certified", "alpha": 0.02}, "alpha: got 0.02, but 99 calibration rows certify nothing below"),
        ({"guarantee": "certified", "confidence": 0.995}, "alpha: got 0.05, but 99 .* at confidence 0.995; use alpha"),
        ({"guarantee": "class_conditional", "alpha": 0.04}, r"alpha: got 0.04, but class 'sneaker \[new\]' has"),
        ({"guarantee": "false_discovery_rate", "alpha": 0.004}, "alpha: got 0.004, but 99 calibration rows cannot"),
    ],
)
def test_a_server_whose_default_guarantee_cannot_be_honoured_does_not_become_ready(start, options, message):
    """Better than refusing every request that names none."""
    running = start(StandIn(), ready=False, **options)

    with pytest.raises(InvalidInputError, match=message):
        running.server.make_ready()

    assert check(running, READY) == Status.NOT_SERVING


def test_a_drift_state_that_another_server_holds_stops_the_start(start, tmp_path):
    """Ports are closed again, and the holder is not disturbed; once it has stopped the folder is free."""
    running = start(StandIn(), drift_state=tmp_path)
    registry = Registry()
    registry.add(StandIn())
    settings = ServerSettings(host="127.0.0.1", port=0, metrics_port=0, drift_state=tmp_path)
    server = Server(settings, registry, Metrics(CollectorRegistry(), version="0"))

    with pytest.raises(StateError, match=f"{tmp_path}: another server keeps its drift state here; give each its own"):
        server.start()

    server.wait()
    assert check(running, READY) == Status.SERVING
    running.server.stop_now()
    assert check(start(StandIn(), drift_state=tmp_path), READY) == Status.SERVING


def test_a_damaged_drift_state_stops_the_start(start, tmp_path):
    """With the file to remove; nothing is overwritten."""
    first = start(StandIn(), drift_state=tmp_path)
    first.server.stop_now()
    [file] = tmp_path.glob("*.safetensors")
    file.write_bytes(b"no state")

    running = start(StandIn(), ready=False, drift_state=tmp_path)
    with pytest.raises(StateError, match=f"{file}: cannot go on from this drift state .*remove the file to begin anew"):
        running.server.make_ready()
    running.server.stop_now()

    assert file.read_bytes() == b"no state"


@pytest.mark.parametrize("read", [1, 2])
def test_a_start_that_is_wanted_no_longer_reads_no_further_bundle(start, tmp_path, loading, read):
    """A signal to stop need not wait for bundles that will serve nobody; what was read, all even, is not served."""
    paths = [tmp_path / "1", tmp_path / "2"]
    for path in paths:
        standin_bundles.write(path, path.name)
    running = start(ready=False, load=loading, bundles=tuple(paths))

    assert not running.server.make_ready(lambda: len(loading.loaded) < read)

    assert loading.loaded == paths[:read]
    assert check(running, READY) == Status.NOT_SERVING


def test_two_paths_of_one_version_end_the_start_with_the_second(start, tmp_path, loading):
    """The message says which of many bundles it is."""
    for name in ("a", "b"):
        standin_bundles.write(tmp_path / name, "1")
    running = start(ready=False, load=loading, bundles=(tmp_path / "a", tmp_path / "b"))

    with pytest.raises(ConflictError, match=f"^{tmp_path / 'b'}: detector 'standin' version '1' is loaded already"):
        running.server.make_ready()
    running.server.stop_now()
