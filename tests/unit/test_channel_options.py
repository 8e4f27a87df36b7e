from __future__ import annotations

from softkin.channel_options import channel_options
from softkin.settings import ServerSettings


def test_connections_live_for_ever_unless_told_otherwise():
    """Dead ones are found, and clients may test theirs every ten seconds."""
    assert dict(channel_options(ServerSettings())) == {
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": 2 * 64 * 1024 * 1024,
        "grpc.server.max_pending_requests": 10_000,
        "grpc.server.max_pending_requests_hard_limit": 10_000,
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    }


def test_seconds_become_whole_milliseconds():
    """gRPC takes integers."""
    settings = ServerSettings(
        max_message_bytes=2048,
        max_connection_age_seconds=1.0015,
        max_connection_age_grace_seconds=0,
        keepalive_seconds=1.5,
        min_ping_interval_seconds=0.25,
    )

    options = dict(channel_options(settings))

    assert options["grpc.max_receive_message_length"] == 2 * 2048
    assert (options["grpc.max_connection_age_ms"], options["grpc.max_connection_age_grace_ms"]) == (1002, 0)
    assert options["grpc.keepalive_time_ms"] == 1500
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 250
    assert all(isinstance(v, int) for v in options.values())


def test_a_message_limit_stays_within_what_grpc_can_count():
    """A message a little too large gets in, to be refused with words; the largest limit has no room for that."""
    largest = (1 << 31) - 1

    options = dict(channel_options(ServerSettings(max_message_bytes=largest, max_pending_bytes=1 << 40)))

    assert options["grpc.max_receive_message_length"] == largest
