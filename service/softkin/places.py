"""A limit on calls that hold a thread as long as their callers please, in which the next one always finds a place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE_SECONDS = 0.2
"""How long to wait for a free place: callers that behave leave sooner, and so a burst of them loses no call."""
LEAST_SECONDS = 0.05
"""How long nobody loses a place: when many have run out of patience at the same time, each would take it from the one
that has just come, whose message is there and has only to be read."""


class Cancellable(Protocol):
    """A call, as gRPC's servicer contexts are."""

    def cancel(self) -> object:
        """End it; its threads go on at once."""


class Places:
    """Some places; when all are taken, the call that has held one longest is cancelled to make room. Thread-safe.

    Args:
        limit: how many. There must be more threads than that: the next call waits for its place in one of its own.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[object, tuple[Cancellable, float]] = {}
        self._left = threading.Condition()

    @contextmanager
    def hold(self, call: Cancellable) -> Iterator[None]:
        """Hold a place while the thread waits for the call's other side."""
        place, longest = object(), None
        with self._left:
            self._left.wait_for(self._free, PATIENCE_SECONDS)
            while not self._free():
                oldest = next(iter(self._held))
                early = self._held[oldest][1] + LEAST_SECONDS - time.monotonic()
                if early <= 0:
                    longest, _ = self._held.pop(oldest)
                else:
                    self._left.wait(early)
            self._held[place] = call, time.monotonic()
        if longest is not None:
            longest.cancel()
        try:
            yield
        finally:
            with self._left:
                if self._held.pop(place, None) is not None:
                    self._left.notify()

    def _free(self) -> bool:
        return len(self._held) < self._limit

    def make_room(self) -> None:
        """Cancel the call that has held its place longest, for one that gets no thread; but not if it has just come."""
        with self._left:
            place = next(iter(self._held), None)
            if place is None or time.monotonic() - self._held[place][1] < PATIENCE_SECONDS:
                return
            longest, _ = self._held.pop(place)
            self._left.notify()
        longest.cancel()
