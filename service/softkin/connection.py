"""What every client is made of: a channel, what goes with each call, and errors in softkin's own terms."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from softkin.client_channel import File, call_metadata, open_channel
from softkin.client_errors import call_error
from softkin.errors import SoftkinError


class Connection:
    """A connection to a server, to be used as a context manager or closed.

    Args:
        target: `HOST:PORT`, or any gRPC target.
        timeout_seconds: deadline of each call, retries included.
        tls_ca: PEM file of the authorities of server certificates; plaintext when None.
        tls_cert: PEM file of this client's certificate, for servers that ask for one.
        tls_key: PEM file of its private key, without a password.
        tls_server_name: name that the server's certificate must have; the target's host when None.
        token: bearer token that goes with every call.

    Raises:
        InvalidInputError: a file is unreadable or wrong, or the token would leave this machine in plaintext.
    """

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
    ) -> None:
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._metadata = call_metadata(token, target, encrypted=tls_ca is not None)
        self._channel = open_channel(
            target, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, tls_server_name=tls_server_name
        )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Message) -> Any:  # generated stubs carry no types
        try:
            return method(request, timeout=self._timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as e:
            raise self._error(e) from None

    def _error(self, e: Any) -> SoftkinError:
        return call_error(e, self._target)
