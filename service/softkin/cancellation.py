"""Lets one thread stop a computation that runs in another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from softkin.errors import CancelledError


class Cancellation:
    """Handed to a computation by whoever may want to stop it; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: list[Callable[[], None]] = []
        self.cancelled = False
        """Whether `cancel` was called."""

    def cancel(self) -> None:
        """Stop what runs now, and refuse what would start later. May be called more than once."""
        with self._lock:
            self.cancelled = True
            for stop in self._stops:
                stop()

    @contextmanager
    def stopping_by(self, stop: Callable[[], None]) -> Iterator[None]:
        """Call `stop`, which must be quick and not raise, on `cancel` while the block runs.

        Raises:
            CancelledError: cancelled already.
        """
        with self._lock:
            if self.cancelled:
                raise CancelledError
            self._stops.append(stop)
        try:
            yield
        finally:
            with self._lock:
                self._stops.remove(stop)
