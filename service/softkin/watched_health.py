"""The health service, whose watches end with the server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import grpc
from grpc_health.v1 import health, health_pb2

Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Sends a status to a watcher; None ends the watch."""


class WatchedHealth(health.HealthServicer):  # type: ignore[misc]  # it ships no types
    """gRPC waits for open watches as for any call, and they never end: a drain would take as long as it may."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[_Watch] = set()
        self._watches_lock = threading.Lock()
        self._ending = False
        self._outbox: SimpleQueue[tuple[Send, health_pb2.HealthCheckResponse | None]] = SimpleQueue()
        threading.Thread(target=self._send, name="health", daemon=True).start()

    def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send_response_callback: Send
    ) -> None:
        """Tell the status of a service, now and at every change."""
        # Not sent where the base class holds its lock: a send waits for gRPC's own thread, and that one for the lock
        # when a watcher leaves at the same time.
        watch = _Watch(lambda response: self._outbox.put((send_response_callback, response)), self._forget)
        with self._watches_lock:
            self._watches.add(watch)
        super().Watch(request, context, watch)
        if self._ending:
            watch(None)

    def end_watches(self) -> None:
        """End every watch in an orderly way, later ones at once, for a server that closes its port."""
        self._ending = True
        with self._watches_lock:
            watches = list(self._watches)
        for watch in watches:
            watch(None)

    def _send(self) -> None:
        while True:
            send, response = self._outbox.get()
            with suppress(Exception):  # its watcher has gone
                send(response)

    def _forget(self, watch: _Watch) -> None:
        with self._watches_lock:
            self._watches.discard(watch)


class _Watch:
    """Passes statuses on until it has ended, once: gRPC ends it too, when its call is over."""

    def __init__(self, send: Send, ended: Callable[[_Watch], None]) -> None:
        self._send = send
        self._ended = ended
        self._lock = threading.Lock()
        self._open = True

    def __call__(self, response: health_pb2.HealthCheckResponse | None) -> None:
        with self._lock:
            was_open, self._open = self._open, self._open and response is not None
        if was_open:
            self._send(response)
        if response is None:
            self._ended(self)
