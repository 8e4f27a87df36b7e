"""The server as a process: signals, exit status, log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import SCRIPT
from softkin.bundle import MANIFEST
from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb

Status = health_pb2.HealthCheckResponse
REQUEST = pb.ScoreRequest(inputs=array_to_tensor(np.ones((3, 2, 3), np.float32)))


@pytest.fixture
def fifo(tmp_path):
    """Requests in flight are held until someone has written to it and closed it."""
    path = tmp_path / "hold"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_loses_no_request_in_flight_and_the_process_exits_0(serve, fifo, number):
    """Ten requests, two computing and eight waiting when the signal comes: ten answers."""
    process = serve("--hold", str(fifo))
    calls = [process.stub.Score.future(REQUEST, timeout=60) for _ in range(10)]
    process.wait_for_pending_rows(30)

    process.popen.send_signal(number)
    process.read_until("event=draining")
    fifo.write_text("go")

    assert [len(c.result(timeout=30).p_value) for c in calls] == [3] * 10
    status, log = process.finish()
    assert status == 0
    assert f"event=draining signal={number.name} pending_requests=10" in log
    assert "abandoned_requests=0" in log


def test_an_idle_server_with_an_open_connection_stops_at_once(serve):
    """A connected client that asks for nothing does not hold the grace period."""
    process = serve("--drain-grace-seconds", "600")
    process.stub.Score(REQUEST, timeout=30)

    process.popen.send_signal(signal.SIGTERM)

    status, log = process.finish()
    assert status == 0
    assert float(re.search(r"event=stopped seconds=([\d.]+)", log)[1]) < 10


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has this policy")
def test_threads_do_not_push_each_other_from_their_cores(serve):
    """Of those that serve calls; libraries may have started some before."""
    process = serve()
    process.stub.Score(REQUEST, timeout=30)

    threads = [int(t) for t in os.listdir(f"/proc/{process.popen.pid}/task")]
    policies = [os.sched_getscheduler(t) for t in threads]

    assert os.sched_getscheduler(process.popen.pid) == os.SCHED_BATCH
    assert policies.count(os.SCHED_BATCH) > 128  # as many as requests may be pending


def test_open_health_watches_do_not_hold_a_drain(serve):
    """They learn of NOT_SERVING, then end as calls that went well."""
    process = serve("--drain-grace-seconds", "600")
    stub = health_pb2_grpc.HealthStub(process.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "softkin.v1.OutlierService")]
    left = stub.Watch(health_pb2.HealthCheckRequest())
    assert [next(w).status for w in (*watches, left)] == [Status.SERVING] * 3
    left.cancel()

    process.popen.send_signal(signal.SIGTERM)

    assert [[r.status for r in w] for w in watches] == [[Status.NOT_SERVING]] * 2
    status, log = process.finish()
    assert status == 0
    assert float(re.search(r"event=stopped seconds=([\d.]+)", log)[1]) < 10


def test_a_second_signal_stops_at_once(serve, fifo):
    """What is in flight is abandoned, which the exit status and the log say."""
    process = serve("--hold", str(fifo), "--drain-grace-seconds", "600")
    call = process.stub.Score.future(REQUEST, timeout=60)
    process.wait_for_pending_rows(3)
    process.popen.send_signal(signal.SIGTERM)
    process.read_until("event=draining")

    process.popen.send_signal(signal.SIGTERM)

    status, log = process.finish()
    assert status == 1
    assert "abandoned_requests=1" in log
    assert isinstance(call.exception(timeout=30), grpc.RpcError)


def test_a_second_signal_ends_a_start_that_hangs(tmp_path):
    """The first one waits for the bundle at hand, which storage that hangs never gives."""
    manifest = tmp_path / MANIFEST
    os.mkfifo(manifest)
    ports = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "softkin.cli", "serve", tmp_path, *ports]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as popen:
        watchdog = threading.Timer(60, popen.kill)
        watchdog.start()
        with manifest.open("wb"):  # once a reader is there
            for number in (signal.SIGTERM, signal.SIGINT):
                popen.send_signal(number)
            log = popen.stderr.read()
        watchdog.cancel()
        watchdog.join()

    assert popen.returncode == 1
    assert log.endswith("softkin: error: stopped by a second signal before the start was over\n")


def test_garbage_is_collected_without_what_stays_until_the_end():
    """Else a full collection holds every caller up, to look through all modules once more."""
    code = (
        "import atexit, gc, runpy, sys\n"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count(), file=sys.stderr))\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as popen:
        watchdog = threading.Timer(60, popen.kill)
        watchdog.start()
        next(line for line in popen.stderr if "event=serving" in line)
        popen.send_signal(signal.SIGTERM)
        log = popen.stderr.read()
        watchdog.cancel()
        watchdog.join()

    assert int(re.search(r"frozen (\d+)", log)[1]) > 10_000


def test_a_second_signal_cuts_the_drain_delay_short(serve):
    """Nothing in flight: exit status 0."""
    process = serve("--drain-delay-seconds", "600")
    process.popen.send_signal(signal.SIGTERM)
    process.read_until("event=draining")

    process.popen.send_signal(signal.SIGTERM)

    assert process.finish()[0] == 0


def test_the_log_says_what_runs_where(serve):
    """Version, detectors, digest, the device it really is on, ports: one short line each."""
    process = serve()
    process.popen.send_signal(signal.SIGTERM)
    _, log = process.finish()

    for pattern in (
        r"level=INFO event=starting version=\S+ port=\d+ metrics_port=\d+\n",
        r"level=INFO event=loaded detector=standin version=1 digest=[0-9a-f]{12} device=cpu device_asked=auto\n",
        r"level=INFO event=serving host=127.0.0.1 port=\d+ metrics_port=\d+\n",
        r"level=INFO event=stopped seconds=[\d.]+ abandoned_requests=0\n",
    ):
        assert re.search(pattern, log), pattern


def test_process_metrics_are_exposed_and_created_series_are_not(serve):
    """Memory, the interpreter and its garbage beside the service's own metrics."""
    process = serve()
    process.stub.Score(REQUEST, timeout=30)

    with urllib.request.urlopen(f"http://127.0.0.1:{process.metrics_port}/metrics", timeout=20) as answer:
        text = answer.read().decode()

    for name in ("process_resident_memory_bytes", "python_info", "python_gc_collections_total"):
        assert f"\n{name}" in text
    assert "_created" not in text
