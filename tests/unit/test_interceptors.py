"""What the interceptor makes of a call before any service sees it."""

from __future__ import annotations

import pytest

from softkin.interceptors import request_id


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, ""),
        ((), ""),
        ((("x-request-id", "a-Z_9.:"),), "a-Z_9.:"),
        ((("x-request-id", "x" * 64),), "x" * 64),
        ((("x-request-id", "x" * 65),), ""),
        ((("x-request-id", ""),), ""),
        ((("x-request-id", "order 66"),), ""),
        ((("x-request-id", "order-66\n"),), ""),
        ((("x-request-id", b"order-66"),), ""),
        ((("x-request-id-bin", "order-66"), ("user-agent", "grpc")), ""),
        ((("user-agent", "grpc"), ("x-request-id", "no good"), ("x-request-id", "good")), "good"),
    ],
)
def test_a_request_id_is_what_is_fit_for_a_log_line(metadata, expected):
    """Up to 64 characters that cannot end a value or a line, from the one key that is meant for it."""
    assert request_id(metadata) == expected
