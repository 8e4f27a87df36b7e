"""What the settings ask of gRPC's own machinery: message size, life of connections, pings."""

from __future__ import annotations

from softkin.settings import ServerSettings

KEEPALIVE_TIMEOUT_SECONDS = 20
MOST_UNREAD_CALLS = 10_000
"""Most calls that may have arrived and not been looked at by a thread: several seconds' worth at thousands a second."""


def channel_options(settings: ServerSettings) -> list[tuple[str, int]]:
    """The options of the server's channels, in gRPC's names and units."""
    options = {
        "grpc.so_reuseport": 0,  # otherwise a second server on the port takes half of the calls, silently
        # Up to twice the limit a message gets in, to be refused with an explanation and counted; over that gRPC cuts
        # the call off, and what it was cannot be told from a caller who left.
        "grpc.max_receive_message_length": min(2 * settings.max_message_bytes, (1 << 31) - 1),
        # From a thousand such calls on gRPC would cut some off, without a word and uncounted, instead of leaving them
        # to the gate, which explains.
        "grpc.server.max_pending_requests": MOST_UNREAD_CALLS,
        "grpc.server.max_pending_requests_hard_limit": MOST_UNREAD_CALLS,
        "grpc.keepalive_time_ms": _milliseconds(settings.keepalive_seconds),
        "grpc.keepalive_timeout_ms": _milliseconds(KEEPALIVE_TIMEOUT_SECONDS),
        # Idle connections too: a client that vanished between two calls holds one for ever. This also lets clients test
        # idle connections as often as busy ones.
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": _milliseconds(settings.min_ping_interval_seconds),
    }
    if settings.max_connection_age_seconds is not None:
        options["grpc.max_connection_age_ms"] = _milliseconds(settings.max_connection_age_seconds)
        options["grpc.max_connection_age_grace_ms"] = _milliseconds(settings.max_connection_age_grace_seconds)
    return list(options.items())


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
