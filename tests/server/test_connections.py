"""How connections live: which server a call goes to, and when a server asks to reconnect."""

from __future__ import annotations

import threading

import grpc
import numpy as np

from softkin import client_channel
from softkin.client import Client
from softkin.server import READY
from standin import StandIn

ROW = np.zeros((1, 2, 3), np.float32)


def test_calls_take_turns_among_the_addresses_of_a_target(start):
    """As those of a headless Service: no address is left out, and one that stops is passed over."""
    detectors = [StandIn(), StandIn()]
    servers = [start(d) for d in detectors]
    addresses = ",".join(s.target for s in servers)

    with Client(f"ipv4:{addresses}") as client:
        servers[0].until(lambda: len(client.score(ROW)) and all(d.rows_scored for d in detectors))
        before = [d.rows_scored for d in detectors]
        for _ in range(20):
            client.score(ROW)
        assert [d.rows_scored - n for d, n in zip(detectors, before, strict=True)] == [10, 10]

        servers[0].server.stop()
        for _ in range(20):
            client.score(ROW)

    assert detectors[1].rows_scored - before[1] == 30


def test_a_connection_past_its_age_is_given_up_and_no_call_notices(start):
    """The client reconnects, which is when it would find new instances."""
    running = start(StandIn(), max_connection_age_seconds=1)
    lost = threading.Event()
    seen = []

    def watch(state):
        if grpc.ChannelConnectivity.READY in seen and state is grpc.ChannelConnectivity.IDLE:
            lost.set()
        seen.append(state)

    others = set(threading.enumerate())
    running.channel.subscribe(watch)
    (watching,) = set(threading.enumerate()) - others
    running.until(lambda: len(running.score(ROW).p_value) == 1 and lost.is_set())

    assert len(running.score(ROW).p_value) == 1
    running.until(lambda: seen[-1] is grpc.ChannelConnectivity.READY)
    # gRPC's thread that watches fails where the channel is closed under it.
    running.channel.unsubscribe(watch)
    watching.join()


def test_a_loopback_target_is_reached_without_the_proxy_of_the_environment(start, monkeypatch):
    """A probe in a container that has one, for which nobody has made an exception; and a token must not go there."""
    running = start(StandIn())
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)

    with Client(running.target, token="a-token", timeout_seconds=5) as client:
        assert len(client.score(ROW)) == 1


def test_clients_that_test_their_connection_as_often_as_they_may_keep_it(start, rows, gate, monkeypatch):
    """While a call waits, at the interval that the server allows: gRPC's own least is five minutes."""
    monkeypatch.setattr(client_channel, "KEEPALIVE_SECONDS", 1)
    detector = StandIn(gate=gate)
    running = start(detector, min_ping_interval_seconds=0.5)
    threading.Timer(7, gate.set).start()

    with running.client() as client:
        scores = client.score(rows(2))

    labels = {"grpc_type": "UNARY", "grpc_service": READY, "grpc_method": "Score"}
    assert len(scores.p_value) == 2
    assert running.sample("grpc_server_started_total", **labels) == 1  # it would be tried again
