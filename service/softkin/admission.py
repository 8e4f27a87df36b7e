"""Bounds the work in hand: over the limits a request is refused at once, instead of waiting for its deadline."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from softkin.errors import OverloadedError
from softkin.interceptors import CallEndedError
from softkin.metrics import Metrics
from softkin.settings import ServerSettings

RETRY_AFTER_SECONDS = 0.5
"""What a refused caller is told to wait: several requests' worth of work, so that retries do not pile up."""
LONGEST_WAIT_SECONDS = 24 * 3600.0
"""Stands for no deadline, which gRPC gives as a time too large for a lock."""


class Admission:
    """Counts pending rows and requests, computes a few requests at a time and keeps the rest waiting.

    Args:
        settings: limits on pending rows and requests, and the number computed at the same time.
        metrics: shows the pending rows.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._gauge = metrics.pending_rows
        self._lock = threading.Lock()
        self._rows = 0
        self._requests = 0
        self._slots = threading.Semaphore(settings.workers)

    @property
    def pending_requests(self) -> int:
        """Requests waiting or being scored."""
        return self._requests

    @contextmanager
    def turn(self, rows: int, context: grpc.ServicerContext) -> Iterator[None]:
        """Hold `rows` rows of the budget, and wait for a slot to compute in.

        Raises:
            OverloadedError: too much is pending.
            CallEndedError: the caller no longer waits.
        """
        self._take(rows)
        try:
            if not self._slots.acquire(timeout=min(context.time_remaining(), LONGEST_WAIT_SECONDS)):
                raise CallEndedError(grpc.StatusCode.DEADLINE_EXCEEDED)
            try:
                if context.time_remaining() <= 0 or not context.is_active():
                    raise ended(context)
                yield
            finally:
                self._slots.release()
        finally:
            self._give_back(rows)

    def _take(self, rows: int) -> None:
        most_rows, most_requests = self._settings.max_pending_rows, self._settings.max_pending_requests
        with self._lock:
            if self._rows + rows > most_rows:
                raise _overloaded(
                    f"{self._rows} rows are pending, {rows} more would exceed max_pending_rows = {most_rows}"
                )
            if self._requests >= most_requests:
                raise _overloaded(f"{self._requests} requests are pending, max_pending_requests = {most_requests}")
            self._rows += rows
            self._requests += 1
            self._gauge.set(self._rows)

    def _give_back(self, rows: int) -> None:
        with self._lock:
            self._rows -= rows
            self._requests -= 1
            self._gauge.set(self._rows)


def ended(context: grpc.ServicerContext) -> CallEndedError:
    """What to raise for a call that nobody waits for any more: past its deadline, or cancelled."""
    late = context.time_remaining() <= 0
    return CallEndedError(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)


def _overloaded(limit: str) -> OverloadedError:
    return OverloadedError(f"{limit}; retry after {RETRY_AFTER_SECONDS:g} s", RETRY_AFTER_SECONDS)
