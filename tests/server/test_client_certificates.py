"""What a client says of a certificate that is refused, its own or the server's, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from authority import Authority
from softkin.client import Client
from softkin.errors import UnavailableError
from standin import StandIn


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """The authority that everybody here trusts."""
    return Authority(tmp_path)


@pytest.fixture
def expose() -> Iterator[Callable[[dict[str, Path]], str]]:
    """Opens a port with any certificate: softkin's own server uses none that has expired."""
    servers = []

    def run(files: dict[str, Path]) -> str:
        pair = files["tls_key"].read_bytes(), files["tls_cert"].read_bytes()
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield run
    for server in servers:
        server.stop(None).wait()


def refusal(target: str, **files: Path) -> str:
    """What a client says that does not get through."""
    with Client(target, timeout_seconds=5, **files) as client, pytest.raises(UnavailableError) as e:
        client.score(np.zeros((1, 2, 3), np.float32))
    return str(e.value)


def test_of_a_server_whose_certificate_has_expired_it_says_so(ca, expose):
    """Another authority would not help."""
    target = expose(ca.issue("server", expired=True))

    assert refusal(target, tls_ca=ca.file).endswith("; renew the server's certificate, or set this machine's clock")


def test_so_it_does_where_the_certificate_is_not_valid_yet(ca, expose):
    """As where the client's clock is slow."""
    target = expose(ca.issue("server", early=True))

    assert refusal(target, tls_ca=ca.file).endswith("valid by now, or set this machine's clock")


@pytest.mark.parametrize("expired", [True, False])
def test_a_client_whose_own_certificate_is_refused_is_told_what_may_be_wrong_with_it(start, ca, tmp_path, expired):
    """It has given one: to be told to give one would not help."""
    running = start(StandIn(), **ca.issue("server"), tls_client_ca=ca.file)
    authority = ca if expired else Authority(tmp_path, "other")

    found = refusal(running.target, tls_ca=ca.file, **authority.issue("client", expired=expired))

    assert found.endswith("one that has not expired, of an authority in its tls_client_ca")
