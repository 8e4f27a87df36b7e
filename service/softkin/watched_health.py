"""The health service: it answers whatever its other callers do, and its watches end with the server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from softkin.places import Places

SENDERS = 256
"""Most threads that send to watchers, started when needed: a watcher that does not read holds one until it goes."""
SILENT_READERS = 192
"""How many of those threads such watchers can hold; one more ends the oldest."""
MOST_WATCHES = 10_000
"""Watches open at a time, of 25 KB each; anybody may open any number on one connection, so one more ends the oldest."""
LAST_WORDS_SECONDS = 1.0
"""How long a watcher has to take the end of its watch."""

Send = Callable[[health_pb2.HealthCheckResponse | None], None]
"""Sends a status to a watcher; None ends the watch."""


class WatchedHealth(health.HealthServicer):  # type: ignore[misc]  # it ships no types
    """The library's health service, with watches that the server can end.

    gRPC waits for open watches as for any call, and by themselves they never end: every drain would take all its time.

    Args:
        places: of calls whose message is on its way.
    """

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places
        self._reading = Places(SILENT_READERS)
        self._open: dict[_Watch, grpc.ServicerContext] = {}
        self._open_lock = threading.Lock()
        self._ending = False
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="health")
        self._submit(lambda: None)  # starts one: later the system may have none to give

    def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext, send_response_callback: Send
    ) -> None:
        """Tell the status of a service, now and at every change; of one that has none, that it is unknown."""

        def send(response: health_pb2.HealthCheckResponse | None) -> None:
            with self._reading.hold(context):
                send_response_callback(response)

        watch = _Watch(send, self._submit)
        longest = None
        with self._open_lock:
            if len(self._open) >= MOST_WATCHES:
                longest = self._open.pop(next(iter(self._open)))
            self._open[watch] = context
        if longest is not None:
            longest.cancel()
        callbacks: list[Callable[[], None]] = []
        if request.service in self._server_status:
            super().Watch(request, SimpleNamespace(add_callback=callbacks.append), watch)
        else:  # the base class would keep the name for ever, and callers can think of as many as they like
            watch(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN))

        def left() -> None:
            for callback in callbacks:
                callback()
            with self._open_lock:
                self._open.pop(watch, None)

        if not context.add_callback(left):
            left()  # it left before it was told anything; the base class would keep it for ever
        if self._ending:
            watch(None)

    def serving(self, service: str) -> bool:
        """Whether it says that a service serves."""
        return bool(self._server_status.get(service) == health_pb2.HealthCheckResponse.SERVING)

    def add_to(self, server: grpc.Server) -> None:
        """Serve it there.

        As streams, which are the same on the wire: gRPC would wait for the one message before this service hears of the
        call, and could end it.
        """

        def check(messages: Iterator[bytes], context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
            return self.Check(self._request(messages, context), context)

        def watch(messages: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            self.Watch(self._request(messages, context), context, send)

        watch.experimental_non_blocking = True  # type: ignore[attr-defined]  # no thread while nothing is sent
        to_bytes = health_pb2.HealthCheckResponse.SerializeToString
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=to_bytes),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=to_bytes),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers),))

    def _request(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> health_pb2.HealthCheckRequest:
        with self._places.hold(context):
            message = next(messages, None)
        try:
            return health_pb2.HealthCheckRequest.FromString(message)
        except (TypeError, DecodeError):  # none, or none of this kind
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a call of the health service brings one HealthCheckRequest"
            )

    def end_watches(self) -> None:
        """End every watch in an orderly way, later ones at once, for a server that closes its port."""
        self._ending = True
        for watch in self._watches():
            watch(None)

    def cancel_watches(self) -> None:
        """End those that have not taken their end within `LAST_WORDS_SECONDS`."""
        for context in self._watches().values():
            context.cancel()

    def close(self) -> None:
        """End the threads, once no watch is open any more."""
        self._senders.shutdown(wait=False)

    def _watches(self) -> dict[_Watch, grpc.ServicerContext]:
        with self._open_lock:
            return dict(self._open)

    def _submit(self, work: Callable[[], None]) -> None:
        try:
            self._senders.submit(work)
        except RuntimeError:  # no further thread can be started: it waits for one of those that are there
            self._reading.make_room()


class _Watch:
    """Passes statuses on, one after the other, until it is ended; later ones are dropped.

    They are not sent in the caller's thread, where the base class holds its lock: a send waits for the watcher, and for
    gRPC's own thread, which waits for that lock when a watcher leaves at the same time.
    """

    def __init__(self, send: Send, submit: Callable[[Callable[[], None]], None]) -> None:
        self._send = send
        self._submit = submit
        self._lock = threading.Lock()
        self._ended = self._sending = False
        self._waiting: deque[health_pb2.HealthCheckResponse | None] = deque()

    def __call__(self, response: health_pb2.HealthCheckResponse | None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = response is None
            self._waiting.append(response)
            sending, self._sending = self._sending, True
        if not sending:
            self._submit(self._send_waiting)

    def _send_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._sending = False
                    return
                response = self._waiting.popleft()
            with suppress(Exception):  # its watcher has gone
                self._send(response)
