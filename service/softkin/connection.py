"""What every client is made of: a channel, what goes with each call, and errors in softkin's own terms."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, ClassVar, Self

import grpc
from google.protobuf.message import Message
from grpc import aio

from softkin.arguments import as_float
from softkin.client_channel import File, call_metadata, open_channel
from softkin.client_errors import call_error
from softkin.errors import InvalidInputError, SoftkinError
from softkin.requests import check_text

LONGEST_TIMEOUT_SECONDS = 1_000_000_000
"""About thirty years; with much more gRPC's clock overflows, and every deadline has passed already."""

STREAM_THREADS = 2
"""Threads that gRPC starts for a stream: one sends, and one waits for answers."""


class Endpoint:
    """What both kinds of connection are made of: the channel, and what goes with each call.

    Args:
        target: `HOST:PORT`, or any gRPC target.
        timeout_seconds: deadline of each call, retries included.
        tls_ca: PEM file of the authorities of server certificates; plaintext when None.
        tls_cert: PEM file of this client's certificate, for servers that ask for one.
        tls_key: PEM file of its private key, without a password.
        tls_server_name: name that the server's certificate must have; the target's host when None.
        token: bearer token that goes with every call.
        health_checks: see `Client`.

    Raises:
        InvalidInputError: an argument or a file is wrong, or the token would leave this machine in plaintext.
    """

    _library: ClassVar[Any]
    _port_option: ClassVar[str] = "--port"

    _closed = False

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float,
        tls_ca: File | None,
        tls_cert: File | None,
        tls_key: File | None,
        tls_server_name: str | None,
        token: str | None,
        health_checks: bool | None = False,
    ) -> None:
        allowed = f"more than 0 and at most {LONGEST_TIMEOUT_SECONDS}"
        timeout_seconds = as_float("timeout_seconds", timeout_seconds, f"a number, {allowed}")
        if not 0 < timeout_seconds <= LONGEST_TIMEOUT_SECONDS:
            raise InvalidInputError("timeout_seconds", f"got {timeout_seconds}; must be {allowed}")
        check_text(target=target, **({} if tls_server_name is None else {"tls_server_name": tls_server_name}))
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._metadata = call_metadata(token, target, encrypted=tls_ca is not None)
        self._channel = open_channel(
            target,
            health_checks=health_checks,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_server_name=tls_server_name,
            library=self._library,
        )

    def _refuse_if_unusable(self) -> None:
        # gRPC would raise an error of its own, and each of its two libraries another one.
        if self._closed:
            raise SoftkinError(f"{self._target}: the client is closed; make another one")

    def _error(self, e: Any) -> SoftkinError:
        if self._closed and e.code() is grpc.StatusCode.CANCELLED:
            return self._was_closed()
        return call_error(e, self._target, self._port_option)

    def _was_closed(self) -> SoftkinError:
        return SoftkinError(f"{self._target}: CANCELLED: the client was closed")


class Connection(Endpoint):
    """A connection to a server, to be used as a context manager or closed; arguments as for `Endpoint`."""

    _library: ClassVar[Any] = grpc

    def close(self) -> None:
        """Close the connection."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Message) -> Any:  # generated stubs carry no types
        try:
            return self._start(method, request, timeout=self._timeout_seconds)
        except grpc.RpcError as e:
            raise self._error(e) from None

    def _start(self, method: Any, request: Any, **options: float) -> Any:
        self._refuse_if_unusable()
        try:
            return method(request, metadata=self._metadata, **options)
        except ValueError:  # what gRPC raises when another thread has closed the client since
            self._refuse_if_unusable()
            raise

    def _refuse_without_threads(self) -> None:
        """Refuse a stream for which gRPC could start no threads: it takes no notice of that, and later streams hang."""
        enough = threading.Event()
        threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(STREAM_THREADS)]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError as e:
            raise SoftkinError(
                f"{self._target}: no thread is left for a stream ({e}); end others, or raise what limits this process "
                "(ulimit -u, pids_limit)"
            ) from None
        finally:
            enough.set()
        for thread in threads:
            thread.join()


class AsyncConnection(Endpoint):
    """A connection for the tasks of one event loop, which is running; otherwise as `Connection`."""

    _library: ClassVar[Any] = aio
    _loop: asyncio.AbstractEventLoop

    async def close(self) -> None:
        """Close the connection, and end the calls that are open."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _refuse_if_unusable(self) -> None:
        super()._refuse_if_unusable()
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError(f"{self._target}: the client belongs to another event loop; make one in this loop")

    async def _call(self, method: Any, request: Message) -> Any:  # generated stubs carry no types
        self._refuse_if_unusable()
        try:
            return await method(request, timeout=self._timeout_seconds, metadata=self._metadata)
        except (grpc.RpcError, asyncio.CancelledError) as e:
            raise self._failure(e) from None

    def _failure(self, e: BaseException, cause: BaseException | None = None) -> BaseException:
        """What to raise where a call raised `e`; `cause` is why the call ended, where that is known.

        A task that is cancelled ends as cancelled. When only the call was, gRPC raises the same error, which would end
        a task that nobody cancelled.
        """
        if isinstance(e, asyncio.CancelledError) and task_is_cancelled():
            return e
        if cause is not None:
            return cause
        if isinstance(e, asyncio.CancelledError):
            return self._was_closed()
        return self._error(e)


def task_is_cancelled() -> bool:
    """Whether somebody has asked the running task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
