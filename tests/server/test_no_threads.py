"""Where the process may start no further thread: `ulimit -u`, or the `pids_limit` of a container."""

from __future__ import annotations

import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from softkin.call_threads import UNWRAPPED_AT_START
from softkin.errors import SoftkinError
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import SPARE_THREADS, Server
from softkin.settings import ServerSettings
from standin import StandIn

TIMEOUT_SECONDS = 20.0


def allow(monkeypatch, threads):
    """Let so many threads run at a time, of those that are started from now on."""
    start, begun = threading.Thread.start, []

    def start_one(thread):
        if sum(t.is_alive() for t in begun) >= threads:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)


@pytest.mark.parametrize("admin_port", [None, 0])
def test_a_server_stops_in_good_order(start, tmp_path, rows, monkeypatch, admin_port):
    """What it saves is saved, and nobody is cut off: it needs no thread that it has not got."""
    before = set(threading.enumerate())
    running = start(StandIn(), drift_state=tmp_path, admin_port=admin_port)
    own = set(threading.enumerate()) - before
    running.score(rows(3))
    request = health_pb2.HealthCheckRequest(service="softkin.v1.OutlierService")
    watch = running.health.Watch(request, timeout=TIMEOUT_SECONDS)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    allow(monkeypatch, 0)

    running.server.stop()

    assert [said.status for said in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert watch.code() is grpc.StatusCode.OK
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert running.server.abandoned_requests == 0
    running.until(lambda: not any(thread.is_alive() for thread in own))


def test_a_watcher_that_does_not_read_does_not_hold_the_end_either(start, monkeypatch):
    """gRPC's own clock, which would cut it off, is a thread, too."""
    running = start(StandIn(), drain_grace_seconds=60)
    watches = [running.health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS) for _ in range(3)]
    running.until(lambda: len(running.server._health._open) == 3)
    allow(monkeypatch, 0)
    started = time.monotonic()

    running.server.stop()

    assert time.monotonic() - started < running.server._settings.drain_grace_seconds
    assert running.server.abandoned_requests == 0
    for watch in watches:
        watch.cancel()


@pytest.mark.parametrize("beside", [0, 3, 8])
def test_a_server_that_has_room_for_its_calls_alone_does_not_start(monkeypatch, beside):
    """Without a thread for gRPC, say, it would neither serve nor end; and none is left waiting."""
    calls = 1 + 1 + SPARE_THREADS + UNWRAPPED_AT_START
    before = set(threading.enumerate())
    settings = ServerSettings(
        host="127.0.0.1", port=0, metrics_port=0, max_pending_requests=1, max_streams=1, workers=1
    )
    registry = Registry()
    registry.add(StandIn())
    allow(monkeypatch, calls + beside)

    with pytest.raises(SoftkinError, match=r"cannot start 31 threads \(can't start new thread\).*ulimit -u"):
        Server(settings, registry, Metrics(CollectorRegistry(), version="0")).start()

    for thread in set(threading.enumerate()) - before:
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive()
