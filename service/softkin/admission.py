"""Bounds the work in hand: over the limits a request is refused at once, instead of waiting for its deadline."""

from __future__ import annotations

import threading

from softkin.errors import InvalidInputError, OverloadedError
from softkin.settings import ServerSettings

RETRY_AFTER_SECONDS = 0.5
"""What a refused caller is told to wait: several requests' worth of work, so that retries do not pile up."""
MORE_CALLS = 8
"""Unary calls that may be under way beyond `max_pending_requests`: just as many callers, each of which sends its next
call as soon as it is answered, then never find the gate full."""


class Admission:
    """The one gate that every request passes, however it came: counts pending rows, bytes and requests.

    Args:
        settings: the limits.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._departure = threading.Condition(self._lock)
        self._awaiting = 0
        self.departures = 0
        """How many shares have been given back, ever."""
        self.pending_rows = 0
        """Rows waiting or being scored."""
        self.pending_bytes = 0
        """Bytes of their inputs."""
        self.pending_requests = 0
        """Requests waiting or being scored."""

    def refuse_full(self, calls: int = 0) -> None:
        """Refuse a request that could not enter even with a single row, before any work is spent on it.

        Args:
            calls: unary calls under way, this one included. All of them hold a thread, those too whose message is on
                its way, which are not pending yet, and those that are being sent their answer, which are no longer.
                Without a free thread, a call would wait for one unseen.

        Raises:
            OverloadedError: the calls, the rows or the requests are at their limit.
        """
        s = self._settings
        if calls > s.max_pending_requests + MORE_CALLS:
            raise _overloaded(
                f"{calls} calls are under way, max_pending_requests = {s.max_pending_requests} and {MORE_CALLS} more, "
                "whose messages or answers are on their way"
            )
        if self.pending_rows >= s.max_pending_rows or self.pending_requests >= s.max_pending_requests:
            with self._lock:
                self._check(1, 0)

    def enter(self, rows: int, nbytes: int) -> None:
        """Take a share of the budget, for `leave` to give back.

        Raises:
            OverloadedError: too much is pending.
            InvalidInputError: it has more bytes than may ever be pending.
        """
        with self._lock:
            self._check(rows, nbytes)
            self.pending_rows += rows
            self.pending_bytes += nbytes
            self.pending_requests += 1

    def leave(self, rows: int, nbytes: int) -> None:
        """Give the share back."""
        with self._lock:
            self.pending_rows -= rows
            self.pending_bytes -= nbytes
            self.pending_requests -= 1
            self.departures += 1
            if self._awaiting:
                self._departure.notify_all()

    def await_departure(self, since: int, seconds: float) -> None:
        """Wait, for `seconds` at most, until a share has been given back since `departures` was `since`."""
        with self._lock:
            self._awaiting += 1
            self._departure.wait_for(lambda: self.departures != since, seconds)
            self._awaiting -= 1

    def _check(self, rows: int, nbytes: int) -> None:
        s = self._settings
        if self.pending_rows + rows > s.max_pending_rows:
            raise _overloaded(
                f"{self.pending_rows} rows are pending, {rows} more would exceed max_pending_rows = "
                f"{s.max_pending_rows}"
            )
        if self.pending_bytes + nbytes > s.max_pending_bytes:
            if nbytes > s.max_pending_bytes:  # small integers take fewer bytes in a message than in memory
                raise InvalidInputError(
                    "inputs",
                    f"they have {nbytes} bytes in memory, and those of all requests together may have "
                    f"max_pending_bytes = {s.max_pending_bytes}; send several smaller requests",
                )
            raise _overloaded(
                f"{self.pending_bytes} bytes of inputs are pending, {nbytes} more would exceed max_pending_bytes = "
                f"{s.max_pending_bytes}"
            )
        if self.pending_requests >= s.max_pending_requests:
            raise _overloaded(
                f"{self.pending_requests} requests are pending, max_pending_requests = {s.max_pending_requests}"
            )


def _overloaded(limit: str) -> OverloadedError:
    return OverloadedError(f"{limit}; retry after {RETRY_AFTER_SECONDS:g} s", RETRY_AFTER_SECONDS)
