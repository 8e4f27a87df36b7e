"""Calls under way: how many were accepted, and whether new ones still are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

QUIET_SECONDS = 0.1
"""After so long without a new call none is expected: what was sent before its sender heard of the end is here."""
LONGEST_NOISE_SECONDS = 1.0
"""How long new calls are waited out at most: some senders never hear of the end."""


class Traffic:
    """Shared by the interceptor, which tells it of every call, and the server, which ends it. Safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_arrival = 0.0
        self._refusing = False
        self.accepted = 0
        """Calls under way that were not refused."""
        self.streams = 0
        """Those of them that are streams: open, whether or not there is anything to do."""
        self.turned_away = 0
        """Those of them, never streams, that only wait to be told that they are refused."""

    @property
    def unary(self) -> int:
        """Calls under way that bring a request: their message is on its way, or they wait for the answer."""
        return self.accepted - self.streams - self.turned_away

    def arrive(self, *, stream: bool = False) -> bool:
        """Note a call that arrives; returns whether it is accepted, and then `leave` must follow."""
        with self._lock:
            self._last_arrival = time.monotonic()
            if self._refusing:
                return False
            self.accepted += 1
            self.streams += stream
            return True

    def turn_away(self) -> None:
        """Note that an accepted call is to be refused."""
        with self._lock:
            self.turned_away += 1

    def leave(self, *, stream: bool = False, refused: bool = False) -> None:
        """Note the end of an accepted call."""
        with self._lock:
            self.accepted -= 1
            self.streams -= stream
            self.turned_away -= refused

    def refuse(self) -> None:
        """Accept no call from now on."""
        with self._lock:
            self._refusing = True

    def settle(self, seconds: float, hurried: Callable[[float], bool]) -> float:
        """Wait until accepted calls have ended and no new ones arrive; returns the seconds that are left.

        gRPC cancels the calls that reach a port while it closes, which their callers cannot tell from a fault: refused
        here first, they know that they may try elsewhere. Streams may last, and are not waited for: they go on while
        the port closes, and until it does, clients of several servers send every other call here in vain.

        Args:
            seconds: to wait at most for accepted calls.
            hurried: waits so many seconds, and says whether the wait shall end.
        """
        end = time.monotonic() + seconds
        noise_end = None
        while (now := time.monotonic()) < end:
            if self.accepted == self.streams:
                noise_end = noise_end or now + LONGEST_NOISE_SECONDS
                if now - self._last_arrival >= QUIET_SECONDS or now >= noise_end:
                    break
            if hurried(0.01):
                break
        return max(0.0, end - time.monotonic())
