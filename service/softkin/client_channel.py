"""How a client reaches its servers: balancing, retries, TLS, and the token that goes with every call."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from softkin.bearer import METADATA_KEY, authorization
from softkin.errors import InvalidInputError
from softkin.loopback import is_loopback_target
from softkin.v1 import outlier_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["OutlierService"].full_name
File: TypeAlias = str | os.PathLike[str]

_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # The only status that promises that trying again can help and cannot make an overload worse.
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # With the server gone for good, retries stop after a few failures instead of multiplying the load.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS = 60, 20
"""While a call waits: seconds without a sign of the server after which it is asked for one, and those it has for that.

Without it a stream waits for ever when the server's machine is gone, or the network between. The server allows a client
to ask every `min_ping_interval_seconds`, 10 unless changed.
"""
_HEALTH_CHECKS = {"healthCheckConfig": {"serviceName": SERVICE}}
"""Has gRPC watch every server's health, and leave out those that do not serve."""
_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC gives up retrying a request larger than this; its default of 256 KiB is a few hundred images.
    ("grpc.per_rpc_retry_buffer_size", 1 << 30),
    ("grpc.http2.max_pings_without_data", 0),  # otherwise it stops asking after two
]


def open_channel(
    target: str,
    *,
    health_checks: bool | None = False,
    tls_ca: File | None = None,
    tls_cert: File | None = None,
    tls_key: File | None = None,
    tls_server_name: str | None = None,
    library: Any = grpc,
) -> Any:
    """A channel that takes turns among the addresses of the target; it connects when it is first used.

    Args:
        target: `HOST:PORT`, or any gRPC target such as `dns:///softkin:50051`.
        health_checks: whether servers that drain or start are left out; None for those of a list of addresses alone.
        tls_ca: PEM file of the authorities of server certificates; plaintext when None.
        tls_cert: PEM file of the client's certificate, for servers that ask for one.
        tls_key: PEM file of its private key, without a password.
        tls_server_name: name that the server's certificate must have; the target's host when None.
        library: whose channel: `grpc`, or `grpc.aio`, which has functions of the same names.

    Raises:
        InvalidInputError: the target has no address or no such port; a file cannot be read, or is not what it must be;
            or one is missing.
    """
    _check_target(target)
    if health_checks is None:
        # One address may be that of a proxy: what it says of one server would be held for true of all behind it.
        health_checks = target.startswith(("ipv4:", "ipv6:")) and "," in target
    service_config = _SERVICE_CONFIG | _HEALTH_CHECKS if health_checks else _SERVICE_CONFIG
    options = [
        *_OPTIONS,
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.keepalive_time_ms", round(KEEPALIVE_SECONDS * 1000)),
        ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_SECONDS * 1000)),
    ]
    if is_loopback_target(target):
        # gRPC would go through the environment's http_proxy even here, and what is sent in plaintext would leave.
        options.append(("grpc.enable_http_proxy", 0))
    if tls_ca is None:
        for name, value in {"tls_cert": tls_cert, "tls_key": tls_key, "tls_server_name": tls_server_name}.items():
            if value is not None:
                raise InvalidInputError(
                    name, "given without tls_ca; TLS needs the authority of the server's certificate"
                )
        return library.insecure_channel(target, options=options)
    if (tls_cert is None) != (tls_key is None):
        given, missing = ("tls_key", "tls_cert") if tls_cert is None else ("tls_cert", "tls_key")
        raise InvalidInputError(given, f"given without {missing}; a client certificate needs both")
    credentials = grpc.ssl_channel_credentials(
        _checked("tls_ca", tls_ca, lambda context: context.load_verify_locations(tls_ca)),
        *(() if tls_cert is None or tls_key is None else _key_pair(tls_cert, tls_key)),
    )
    if tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls_server_name))
    return library.secure_channel(target, credentials, options=options)


def call_metadata(token: str | None, target: str, *, encrypted: bool) -> tuple[tuple[str, str], ...]:
    """What goes with every call.

    Raises:
        InvalidInputError: the token is malformed, or would leave the machine in plaintext.
    """
    if token is None:
        return ()
    if not encrypted and not is_loopback_target(target):
        raise InvalidInputError(
            "token",
            f"would travel to {target} in plaintext, for anyone to read; give tls_ca, or use a loopback address",
        )
    return ((METADATA_KEY, authorization(token)),)


def _check_target(target: str) -> None:
    if not target:
        raise InvalidInputError("target", "is empty; give HOST:PORT")
    if target.startswith(("unix:", "unix-abstract:", "vsock:")):
        return
    scheme, _, listed = target.partition(":")
    addresses = listed.split(",") if scheme in ("ipv4", "ipv6") else [target]
    for address in addresses:
        port = address.rpartition(":")[2]
        # gRPC connects to the port modulo 65536, whatever is there.
        if port.removeprefix("-").isdecimal() and not 0 <= int(port) <= 65535:
            raise InvalidInputError("target", f"got {target!r}; a port must lie in 0 to 65535")
    if "," in addresses[0] or (scheme == "ipv4" and not all(map(_is_ipv4, addresses))):
        remedy = "several servers are ipv4:ADDRESS:PORT,ADDRESS:PORT, without names"
        raise InvalidInputError("target", f"got {target!r}; {remedy}")


def _is_ipv4(address: str) -> bool:
    try:
        IPv4Address(address.partition(":")[0])
    except ValueError:
        return False
    return True


def _key_pair(cert: File, key: File) -> tuple[bytes, bytes]:
    # An empty password, because without one ssl would ask for it on the terminal.
    pem = _checked("tls_cert", cert, lambda context: context.load_verify_locations(cert))
    return _checked("tls_key", key, lambda context: context.load_cert_chain(cert, key, password="")), pem


def _checked(option: str, path: File, load: Callable[[ssl.SSLContext], Any]) -> bytes:
    """The bytes of a file that the ssl module can load: gRPC itself says nothing about a file that is wrong."""
    remedies = {
        "tls_ca": "not a PEM file of certificates",
        "tls_cert": "not a PEM file of certificates",
        "tls_key": "not the private key of tls_cert as a PEM file without a password",
    }
    try:
        content = Path(path).read_bytes()
        load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except ssl.SSLError as e:
        raise InvalidInputError(option, f"{path}: {remedies[option]} ({e.reason or e})") from None
    except OSError as e:
        raise InvalidInputError(option, f"{path}: cannot be read ({e.strerror}); check path and rights") from None
    return content
