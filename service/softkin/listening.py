"""Whether the server can listen on an address, found out before gRPC is asked, which tells less."""

from __future__ import annotations

import errno
import socket

from softkin.errors import SoftkinError


def host_port(host: str, port: int) -> str:
    """`HOST:PORT` as gRPC takes it, IPv6 addresses in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_address(host: str, port: int, flag: str) -> None:
    """Refuse a host that does not exist, or a port that is taken or forbidden on one of its addresses.

    gRPC itself is content if it gets one of several addresses. Where `localhost` is both 127.0.0.1 and ::1, another
    server might then hold the second one, and get half of the calls.

    Args:
        host: name or address to listen on.
        port: 0 for any that is free.
        flag: the option that named the port, for the message.

    Raises:
        SoftkinError: names the address, the reason and the remedy.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as e:
        raise cannot_listen(host, port, flag, f" ({e.strerror})") from None
    except UnicodeError:
        raise cannot_listen(host, port, flag, " (no host name)") from None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: old connections do not count
                probe.bind(address)
        except OSError as e:
            # An address that this machine does not have, such as ::1 without IPv6, is for gRPC to skip or to refuse.
            if e.errno in (errno.EADDRINUSE, errno.EACCES) or len(found) == 1:
                raise cannot_listen(host, port, flag, f" ({e.strerror})") from None


def cannot_listen(host: str, port: int, flag: str, reason: str = "") -> SoftkinError:
    """The error for a port that cannot be had; `reason` follows the address, with a blank before it."""
    host_flag = "--admin-host" if flag == "--admin-port" else "--host"
    return SoftkinError(
        f"cannot listen on port {port} of {host}{reason}: if another process holds the port, stop it or choose another "
        f"with {flag}; otherwise check {host_flag}"
    )
