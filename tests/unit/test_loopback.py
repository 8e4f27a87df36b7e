from __future__ import annotations

import pytest

from softkin.loopback import is_loopback, is_loopback_target


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_addresses_that_stay_on_this_machine(host):
    """By name, IPv4 and IPv6, with and without brackets."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"])
def test_addresses_that_others_reach(host):
    """Every interface is not loopback, and a name that merely begins like it is another host."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "localhost",
        "127.0.0.1:50051",
        "127.0.0.1",
        "[::1]:50051",
        "::1",
        "dns:localhost:50051",
        "dns:///localhost:50051",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "ipv6:[::1]:1",
        "unix:/run/softkin.sock",
        "unix-abstract:softkin",
    ],
)
def test_targets_that_stay_on_this_machine(target):
    """In every form that gRPC takes."""
    assert is_loopback_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "softkin:50051",
        "10.0.0.1:50051",
        "[2001:db8::1]:50051",
        "2001:db8::1",
        "dns:///softkin:50051",
        "dns://10.0.0.1/localhost:50051",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "xds:///localhost:50051",
        "localhost:50051@example.org",
        "",
    ],
)
def test_targets_that_may_leave_it(target):
    """One address of several is enough, and so is a name server that answers for localhost."""
    assert not is_loopback_target(target)
