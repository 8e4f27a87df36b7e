"""Which addresses never leave the machine."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own: `localhost`, `127.0.0.0/8`, `::1`."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_loopback_target(target: str) -> bool:
    """The same for a gRPC target: `HOST:PORT`, `dns:///HOST:PORT`, `ipv4:A:PORT,B:PORT`, `ipv6:...`, `unix:PATH`.

    A target that asks a name server of its own, or has another scheme, is not known to stay here.
    """
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    if scheme in ("ipv4", "ipv6"):
        return all(is_loopback(_host(address)) for address in rest.split(","))
    if scheme == "dns":
        return is_loopback(_host(rest.removeprefix("///")))
    return is_loopback(_host(target))


def _host(address: str) -> str:
    """`HOST:PORT`, or a host alone, IPv6 in brackets where a port follows."""
    host, _, port = address.rpartition(":")
    return host if port.isdecimal() and (":" not in host or host.startswith("[")) else address
