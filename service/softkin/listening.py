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
        raise cannot_listen(host, port, flag, e) from None
    except UnicodeError:
        raise cannot_listen(host, port, flag, socket.gaierror(socket.EAI_NONAME, "no host name")) from None
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: old connections do not count
                probe.bind(address)
        except OSError as e:
            # An address that this machine does not have, such as ::1 without IPv6, is for gRPC to skip or to refuse.
            if e.errno in (errno.EADDRINUSE, errno.EACCES) or len(found) == 1:
                raise cannot_listen(host, port, flag, e) from None


def cannot_listen(host: str, port: int, flag: str, error: OSError | None = None) -> SoftkinError:
    """The error for a port that cannot be had, with the remedy for what the system said of it, if it said anything."""
    host_flag = "--admin-host" if flag == "--admin-port" else "--host"
    reason = "" if error is None else f" ({error.strerror})"
    if isinstance(error, socket.gaierror) or (error is not None and error.errno == errno.EADDRNOTAVAIL):
        return SoftkinError(
            f"cannot listen on {host}{reason}: this machine has no such address; choose one it has with {host_flag}"
        )
    if error is not None and error.errno == errno.EACCES:
        remedy = f"choose a port from 1024 on with {flag}, or allow this process the lower ones"
    else:
        remedy = (
            f"if another process holds the port, stop it or choose another with {flag}; otherwise check {host_flag}"
        )
    return SoftkinError(f"cannot listen on port {port} of {host}{reason}: {remedy}")
