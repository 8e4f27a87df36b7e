"""The client for programs that run in an event loop: the same calls as coroutines, the same numbers and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from softkin import converters, descriptions
from softkin.arguments import as_rows
from softkin.client_channel import SERVICE, File
from softkin.client_errors import counted_from
from softkin.client_stream import ClientStream
from softkin.connection import AsyncConnection, task_is_cancelled
from softkin.converters import Limits
from softkin.descriptions import DetectorInfo, DriftInfo
from softkin.errors import InvalidInputError, SoftkinError
from softkin.joining import join
from softkin.requests import LearnsLimits, Requests, fill, split
from softkin.scores import Scores
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from softkin.verdicts import Guarantee

_END = object()
SEND_FAILED = "Internal error from Core"
"""What gRPC says of a call that the server has ended, when it sends more; even if it has read the server's words."""
STATUS_SECONDS = 1.0


class AsyncClient(LearnsLimits, AsyncConnection):
    """A connection to a softkin server, for the tasks of the event loop in which it is made.

    Cancelling a task, by `asyncio.timeout` for instance, cancels its call on the server too.

    Args:
        target: as for `Client`, like all that follow.
        timeout_seconds: see there.
        detector: see there.
        version: see there.
        label: see there.
        tls_ca: see there.
        tls_cert: see there.
        tls_key: see there.
        tls_server_name: see there.
        token: see there.
        health_checks: see there.

    Raises:
        InvalidInputError: an argument or a file is wrong, or the token would leave this machine in plaintext.
        RuntimeError: no event loop is running.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float = 30,
        detector: str = "",
        version: str = "",
        label: str = "",
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
        tls_server_name: str | None = None,
        token: str | None = None,
        health_checks: bool | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()  # without one gRPC would take a loop that nobody runs
        self._requests = Requests(detector, version, label)
        super().__init__(
            target,
            timeout_seconds=timeout_seconds,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_server_name=tls_server_name,
            token=token,
            health_checks=health_checks,
        )
        self._stub = pb_grpc.OutlierServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def score(
        self,
        x: NDArray[np.generic],
        *,
        alpha: float | None = None,
        guarantee: Guarantee | None = None,
        confidence: float | None = None,
        smoothing_seed: int | None = None,
        num_neighbors: int = 0,
    ) -> Scores:
        """Score rows, in as many requests as the server's limits ask for.

        Args:
            x: as for `Client.score`, like all that follow.
            alpha: see there.
            guarantee: see there.
            confidence: see there.
            smoothing_seed: see there.
            num_neighbors: see there.

        Returns:
            One answer for all rows, bit for bit that of `Client.score`.

        Raises:
            SoftkinError: the errors of `Client.score`.
        """
        head = self._requests.head(alpha, guarantee, confidence, smoothing_seed, num_neighbors)
        parts: list[Scores] = []
        try:
            for rows in split(as_rows(x), head, await self._known_limits()):
                parts.append(converters.proto_to_scores(await self._call(self._stub.Score, fill(head, rows))))
        except InvalidInputError as e:
            raise self._learnt(counted_from(e, sum(map(len, parts)))) from None
        return join(parts)

    async def score_stream(
        self,
        batches: Iterable[NDArray[np.generic]] | AsyncIterable[NDArray[np.generic]],
        *,
        alpha: float | None = None,
        guarantee: Guarantee | None = None,
        confidence: float | None = None,
        smoothing_seed: int | None = None,
        num_neighbors: int = 0,
    ) -> AsyncGenerator[Scores, None]:
        """Score arrays as they come, on one call, in bounded memory: faster than one call each.

        Arrays are taken as far ahead as the server reads; every array's answer is given in its turn. The call lasts as
        long as there are arrays: `timeout_seconds` does not end it, a server without a sign of life does, within two
        minutes. It is not tried again when it fails. Leaving the loop ends it; where the generator is kept in a
        variable, `contextlib.aclosing` does.

        Args:
            batches: arrays, each as for `score`. An iterable that is not asynchronous may block, because it is asked in
                worker threads, for one array at a time; what it is doing when the call ends, it finishes.
            alpha: as for `score`, for all; so are the others. `false_discovery_rate` selects within each array.
            guarantee: see `score`.
            confidence: see `score`.
            smoothing_seed: see `score`.
            num_neighbors: see `score`.

        Raises:
            UnsupportedError: the server takes no streams; `score` does the same with a call each.
            Whatever `batches` raises, and the errors of `score`, where the array's answer would have come.
        """
        head = self._requests.head(alpha, guarantee, confidence, smoothing_seed, num_neighbors)
        limits = await self._known_limits()
        stream = ClientStream(head, lambda x: split(x, head, limits), self._target)
        source = batches if isinstance(batches, AsyncIterable) else _in_threads(batches)
        self._refuse_if_unusable()
        call = self._stub.ScoreStream(_send(source, stream), metadata=self._metadata)
        said = _said_by_server(call)
        try:
            async for response in call:
                for scores in stream.scores(response):
                    yield scores
            if (wrong := stream.shortfall()) is not None:
                raise wrong
        except InvalidInputError as e:
            raise self._learnt(e) from None
        except (grpc.RpcError, asyncio.CancelledError) as e:
            found = await _own_words(e, said)
            well = isinstance(found, aio.AioRpcError) and found.code() is grpc.StatusCode.OK
            raise self._learnt(self._failure(found, stream.shortfall() if well else stream.error)) from None
        finally:
            call.cancel()

    async def detector_info(self) -> DetectorInfo:
        """What the detector takes, what it was calibrated with and where it runs.

        Raises:
            NotFoundError: no such detector or version.
            UnavailableError: no answer in time.
        """
        detector, _ = await self._describe()
        return descriptions.proto_to_detector_info(detector)

    async def drift(self, of: DetectorInfo | None = None) -> DriftInfo:
        """What the server's drift watch of a detector has seen.

        Args:
            of: one of `detectors`; None for the one that this client scores with.

        Raises:
            NotFoundError: no such detector or version.
            UnavailableError: no answer in time.
        """
        asked = self._requests if of is None else Requests(of.name, of.version, "")
        return descriptions.proto_to_drift(await self._call(self._stub.GetDrift, asked.drift()))

    async def detectors(self) -> list[DetectorInfo]:
        """All that is loaded, in order of name, then version, whichever one this client scores with.

        Raises:
            UnavailableError: no answer in time.
        """
        answer = await self._call(self._stub.ListDetectors, pb.ListDetectorsRequest())
        return [descriptions.proto_to_detector_info(d) for d in answer.detectors]

    async def healthy(self) -> bool:
        """Whether the server is ready to score; False too when it cannot be reached."""
        try:
            return await self.check_health()
        except SoftkinError:
            return False

    async def check_health(self) -> bool:
        """Whether the server says that it is ready to score.

        Raises:
            UnavailableError: no answer in time, or TLS does not come about; the message says why.
        """
        answer = await self._call(self._health.Check, health_pb2.HealthCheckRequest(service=SERVICE))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _describe(self) -> tuple[pb.DetectorInfo, Limits]:
        answer = await self._call(self._stub.GetDetector, self._requests.description())
        self._limits = limits = converters.proto_to_limits(answer.limits)
        return answer.detector, limits

    async def _known_limits(self) -> Limits:
        return self._limits or (await self._describe())[1]


async def _send(
    source: AsyncIterable[NDArray[np.generic]], stream: ClientStream
) -> AsyncIterator[pb.ScoreStreamRequest]:
    """The requests of a stream, taken by a task of gRPC's own."""
    handed_over = False
    try:
        async for x in source:
            for request in stream.requests(x):
                handed_over = True
                yield request
                handed_over = False
        stream.all_sent = True
    except BaseException as e:  # SystemExit too: it would end the loop, and with it the call
        if handed_over or task_is_cancelled():
            raise  # the call has ended, and this is not the source's doing
        stream.error = e  # the stream ends here; what was sent is answered first


def _said_by_server(call: Any) -> asyncio.Future[aio.AioRpcError]:
    """The status that the server ends a call with, once there is one."""
    said: asyncio.Future[aio.AioRpcError] = asyncio.get_running_loop().create_future()

    def note(call: Any) -> None:
        status = (call.code(), call.initial_metadata(), call.trailing_metadata(), call.details())
        code, initial, trailing, details = map(_result, status)  # now: what they return may change before a task asks
        if details != SEND_FAILED and not said.done():
            said.set_result(aio.AioRpcError(code, initial, trailing, details))

    call.add_done_callback(note)
    return said


def _result(known: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not have to wait."""
    try:
        known.send(None)
    except StopIteration as e:
        return e.value
    raise AssertionError("it waits")


async def _own_words(e: BaseException, said: asyncio.Future[aio.AioRpcError]) -> BaseException:
    """The server's own status, where gRPC says only that it could not send any more."""
    if isinstance(e, aio.AioRpcError) and e.details() == SEND_FAILED:
        with suppress(TimeoutError):
            return await asyncio.wait_for(said, STATUS_SECONDS)
    return e


async def _in_threads(batches: Iterable[NDArray[np.generic]]) -> AsyncIterator[NDArray[np.generic]]:
    """The arrays of something that may block: a data loader reads files, or starts processes."""
    iterator = await asyncio.to_thread(iter, batches)
    while (x := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield x  # type: ignore[misc]  # not _END
