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
from softkin.listening import check_address, host_port
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


def test_a_port_that_is_taken_between_look_and_start_is_an_error_with_the_same_remedy(monkeypatch):
    """gRPC does not say why it cannot have it."""
    monkeypatch.setattr("softkin.server.check_address", lambda host, port, flag: None)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        settings = ServerSettings(host="127.0.0.1", port=port, metrics_port=0)

        with pytest.raises(
            SoftkinError,
            match=f"^cannot listen on port {port} of 127.0.0.1: if another process holds the port, stop it or choose "
            "another with --port; otherwise check --host$",
        ):
            Server(settings, Registry(), Metrics(CollectorRegistry(), version="0")).listen()


def test_connections_that_a_server_left_behind_do_not_hold_its_port():
    """The system remembers them for a minute, in which a server could not be restarted."""
    with socket.create_server(("127.0.0.1", 0)) as left:
        address = left.getsockname()
        with socket.create_connection(address) as caller:
            left.accept()[0].close()  # whoever closes first is remembered
            assert caller.recv(1) == b""

    check_address(*address, "--port")


def host_of_two_addresses(monkeypatch, second):
    """A host that is 127.0.0.1 and another address; returns a port that the first of them has."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.1", second)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    return port


def test_a_port_that_is_taken_on_the_second_address_of_a_host_is_refused(monkeypatch):
    """gRPC would be content with the first, and half of the calls would go to whoever has the second."""
    port = host_of_two_addresses(monkeypatch, "127.0.0.2")
    check_address("twice.example", port, "--port")

    with (
        socket.create_server(("127.0.0.2", port)),
        pytest.raises(SoftkinError, match=rf"cannot listen on port {port} of twice.example \(Address already in use\)"),
    ):
        check_address("twice.example", port, "--port")


def test_an_address_of_a_host_that_this_machine_does_not_have_is_left_out(monkeypatch):
    """As `localhost` is ::1 too where there is no IPv6."""
    check_address("twice.example", host_of_two_addresses(monkeypatch, "203.0.113.7"), "--port")


def test_addresses_of_ipv6_stand_in_brackets():
    """Or their last part would be a port."""
    assert (host_port("::1", 50051), host_port("127.0.0.1", 50051)) == ("[::1]:50051", "127.0.0.1:50051")
