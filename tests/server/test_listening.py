"""Ports that cannot be had: the error says which, why and what to do, and nothing of the server stays."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading

import pytest
from prometheus_client import CollectorRegistry

from softkin.errors import SoftkinError
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.settings import ServerSettings
from standin import StandIn


@pytest.mark.parametrize("taken", ["port", "metrics_port", "admin_port"])
def test_a_taken_port_is_an_error_that_names_it_and_the_other_port_is_freed(taken):
    """Never a second server that silently takes half of the calls."""
    with socket.create_server(("127.0.0.1", 0)) as holder, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = holder.getsockname()[1], other.getsockname()[1]
        other.close()
        ports = {"port": free, "metrics_port": free if taken == "port" else 0, taken: port}
        settings = ServerSettings(host="127.0.0.1", **ports)
        server = Server(settings, Registry(), Metrics(CollectorRegistry(), version="0"))

        with pytest.raises(
            SoftkinError,
            match=f"cannot listen on port {port} of 127.0.0.1.*choose another with --{taken.replace('_', '-')}",
        ):
            server.start()
    with socket.create_server(("127.0.0.1", free)):
        pass


def test_a_second_server_on_the_port_is_refused(start):
    """SO_REUSEPORT is off."""
    running = start(StandIn())
    settings = ServerSettings(host="127.0.0.1", port=running.server.port, metrics_port=0)

    with pytest.raises(SoftkinError, match="cannot listen on port"):
        Server(settings, Registry(), Metrics(CollectorRegistry(), version="0")).start()


@pytest.mark.parametrize("taken", ["port", "metrics_port"])
def test_a_start_that_fails_leaves_no_thread(start, taken):
    """A program that embeds a server may try again."""
    running = start(StandIn())
    before = set(threading.enumerate())
    settings = ServerSettings(
        **{"host": "127.0.0.1", "port": 0, "metrics_port": 0, taken: getattr(running.server, taken)}
    )

    with pytest.raises(SoftkinError, match="cannot listen on port"):
        Server(settings, Registry(), Metrics(CollectorRegistry(), version="0")).start()

    running.until(lambda: not set(threading.enumerate()) - before)


def test_a_port_that_is_taken_on_one_address_of_the_host_is_refused():
    """Where localhost is 127.0.0.1 and ::1, callers would find one server or the other."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        settings = ServerSettings(host="localhost", port=port, metrics_port=0)

        with pytest.raises(
            SoftkinError, match=rf"cannot listen on port {port} of localhost \(Address already in use\)"
        ):
            Server(settings, Registry(), Metrics(CollectorRegistry(), version="0")).listen()


@pytest.mark.parametrize("option", ["host", "admin_host"])
@pytest.mark.parametrize("host", ["a..b", "a" * 64, "no-such-host.invalid", "203.0.113.7"])
def test_a_host_that_is_not_here_is_an_error_that_names_it_and_no_port(tmp_path, option, host):
    """Also one that no name server could be asked for: no other port would help."""
    (tmp_path / "tokens").write_text("token")
    found = {"host": "127.0.0.1", "admin_port": 0, "token_file": tmp_path / "tokens", option: host}
    settings = ServerSettings(**found, port=0, metrics_port=0)

    with pytest.raises(SoftkinError) as e:
        Server(settings, Registry(), Metrics(CollectorRegistry(), version="0")).listen()

    flag = option.replace("_", "-")
    assert re.fullmatch(
        rf"cannot listen on {host} \(.+\): this machine has no such address; choose one it has with --{flag}",
        str(e.value),
    )


def test_a_port_that_only_root_may_have_is_an_error_that_says_so(monkeypatch):
    """Nobody holds it, and the host is right."""

    def forbidden(probe, address):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", forbidden)
    settings = ServerSettings(host="127.0.0.1", port=0, metrics_port=80)

    with pytest.raises(
        SoftkinError,
        match=r"port 80 of 127.0.0.1 \(Permission denied\): choose a port from 1024 on with --metrics-port, or allow",
    ):
        Server(settings, Registry(), Metrics(CollectorRegistry(), version="0")).listen()
