"""Lets only callers with a token in."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import grpc

from softkin.bearer import METADATA_KEY, SCHEME, read_tokens
from softkin.errors import AuthenticationError, InvalidInputError
from softkin.logs import log, log_line
from softkin.pipes import is_pipe

REFUSAL = "this call needs a valid token in its metadata: 'authorization: Bearer TOKEN'"
"""The same for a missing and for a wrong token: a caller learns nothing about the tokens there are."""
OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""What answers without a token: probes and tools have none."""
LOOK_AGAIN_SECONDS = 1.0


class TokenFile:
    """The tokens of a file that may change: it is read again once a second at most, when somebody calls.

    A file that becomes unreadable or wrong changes nothing, and the log says so. A pipe is read once.

    Args:
        path: as `bearer.read_tokens` takes it.
        clock: seconds that never go back.

    Raises:
        InvalidInputError: the file cannot be read, has no token, or has a line that is none.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._digests = self._read()
        self._looked = clock()
        self._fault = ""

    def accepts(self, token: str) -> bool:
        """Whether the token is one of the file's."""
        self._look_again()
        given = _digest(token)
        # All of them, whichever matches, and digests, which are all of one length: the time tells nothing.
        return sum([hmac.compare_digest(given, known) for known in self._digests]) > 0

    def _look_again(self) -> None:
        with self._lock:
            if self._clock() - self._looked < LOOK_AGAIN_SECONDS:
                return
            self._looked = self._clock()
            if is_pipe(self._path):
                return
            before, fault = self._digests, ""
            try:
                self._digests = self._read()
            except InvalidInputError as e:
                fault = str(e)
            if fault and fault != self._fault:
                log.warning(log_line("tokens_kept", tokens=len(before), reason=fault))
            if self._digests != before:
                log.info(log_line("tokens_changed", file=self._path, tokens=len(self._digests)))
            self._fault = fault

    def _read(self) -> list[bytes]:
        return [_digest(token) for token in read_tokens(self._path)]


class TokenInterceptor(grpc.ServerInterceptor):
    """Refuses calls without a token, whatever the service, but for `OPEN`.

    It stands behind `CallInterceptor`, which counts the refusal and gives it its status.

    Args:
        tokens: those that let callers in.
    """

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler itself, or one that refuses before anything is read."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN) or self._let_in(handler_call_details):
            return handler
        # As a method that takes a stream: for a stranger's single message gRPC would wait, and hold a thread meanwhile.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_refuse, bytes)
        return grpc.stream_unary_rpc_method_handler(_refuse, bytes)

    def _let_in(self, details: grpc.HandlerCallDetails) -> bool:
        values = [str(value) for key, value in details.invocation_metadata or () if key == METADATA_KEY]
        if len(values) != 1:
            return False
        scheme, _, token = values[0].partition(" ")
        return scheme.lower() == SCHEME.lower() and self._tokens.accepts(token.strip())


def _refuse(request: Any, context: grpc.ServicerContext) -> Never:
    raise AuthenticationError(REFUSAL)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
