"""ScoreStream: requests are read ahead and scored while earlier ones are answered, in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue

import grpc

from softkin.converters import ScoreCall
from softkin.errors import (
    CancelledError,
    InvalidInputError,
    OverloadedError,
    SoftkinError,
    UnmeetableError,
    UnsupportedError,
)
from softkin.interceptors import BIDI_STREAM, request_id
from softkin.metrics import Metrics
from softkin.scoring import ScoringPath
from softkin.scoring_detector import ScoringDetector
from softkin.statuses import Failure, failure
from softkin.tickets import Ticket
from softkin.v1 import outlier_pb2 as pb

METHOD = "ScoreStream"
LABELS = (BIDI_STREAM, pb.DESCRIPTOR.services_by_name["OutlierService"].full_name, METHOD)
RETRY_AFTER_SECONDS = 1.0
PATIENCE_SECONDS = 10.0
"""How long a request of a stream that has none pending waits for room before it is refused: refused at once, streams
would lose every place that gets free to other callers."""
LOOK_UP_SECONDS = 0.1
"""How often a request that waits for others checks whether its caller has gone."""
WITH_THE_CALL = (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""How requests end with the whole stream. That end counts, as any call's; how many of them are met on the way to it is
chance."""
MAX_ANSWER_BYTES = 1 << 20
"""An answer message is sent once it holds so much, also when more answers are ready."""


class Streams:
    """Answers streams, a bounded number at a time.

    Args:
        path: scores their requests.
        metrics: where streams and messages are counted.
        max_streams: open at the same time.
        window: unanswered requests of one stream, after which it is not read further.
    """

    def __init__(self, path: ScoringPath, metrics: Metrics, *, max_streams: int, window: int) -> None:
        self._path = path
        self._metrics = metrics
        self._max_streams = max_streams
        self._window = window
        self._lock = threading.Lock()
        self._open = 0
        metrics.streams.set_function(lambda: self._open)
        metrics.messages(LABELS)

    def answer(
        self, requests: Iterator[pb.ScoreStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreStreamResponse]:
        """The answers of one stream.

        Raises:
            UnsupportedError: this server takes none.
            OverloadedError: too many streams are open, or there is no thread for one more.
            CancelledError: the caller no longer waits.
        """
        if not self._max_streams:
            raise UnsupportedError("this server takes no streams, max_streams = 0; send unary calls")
        with self._lock:
            if self._open >= self._max_streams:
                raise OverloadedError(
                    f"{self._open} streams are open, max_streams = {self._max_streams}; retry after "
                    f"{RETRY_AFTER_SECONDS:g} s, or send unary calls",
                    RETRY_AFTER_SECONDS,
                )
            self._open += 1
        try:
            yield from _Stream(self._path, self._metrics, self._window, context).answers(requests)
        finally:
            with self._lock:
                self._open -= 1


class _Pending:
    """One request of a stream: a ticket, or what its sender is told instead.

    The error itself is not kept: it holds the stream and the detector, a cycle where nobody takes the answer.
    """

    __slots__ = ("decode_seconds", "failure", "ticket")

    def __init__(self, ticket: Ticket | None, failure: Failure | None, decode_seconds: float) -> None:
        self.ticket = ticket
        self.failure = failure
        self.decode_seconds = decode_seconds

    @property
    def ready(self) -> bool:
        return self.ticket is None or self.ticket.done


class _Stream:
    def __init__(self, path: ScoringPath, metrics: Metrics, window: int, context: grpc.ServicerContext) -> None:
        self._path = path
        self._metrics = metrics
        self._context = context
        self._window = threading.Semaphore(window)
        self._arrived: SimpleQueue[_Pending | None] = SimpleQueue()
        self._held: _Pending | None = None
        self._tickets: deque[Ticket] = deque()
        self._progress = threading.Condition()
        self._ended = False

    def answers(self, requests: Iterator[pb.ScoreStreamRequest]) -> Iterator[pb.ScoreStreamResponse]:
        if not self._context.add_callback(self._end):
            raise CancelledError
        reader = threading.Thread(target=self._read, args=(requests,), name="stream", daemon=True)
        try:
            reader.start()
        except RuntimeError:  # the system gives this process no further thread
            raise OverloadedError(
                f"no thread is left for another stream; retry after {RETRY_AFTER_SECONDS:g} s, or send unary calls",
                RETRY_AFTER_SECONDS,
            ) from None
        try:
            more = True
            while more:
                response, more = self._next()
                if self._ended:
                    raise CancelledError
                if response is not None:
                    self._metrics.messages(LABELS, sent=1)
                    yield response
        finally:
            self._end()

    def _read(self, requests: Iterator[pb.ScoreStreamRequest]) -> None:
        """In a thread of its own: submit what arrives, as far ahead as the window allows."""
        try:
            while (message := _received(requests)) is not None:
                self._metrics.messages(LABELS, received=1)
                self._window.acquire()
                self._arrived.put(self._submit(message))
                if self._ended:
                    break
        except Exception as error:  # how gRPC says that the caller has gone
            # gRPC keeps it, and would keep this frame with it: until the garbage is collected, no version whose answers
            # were waited for could give its memory back.
            error.__traceback__ = None
            return
        finally:
            self._arrived.put(None)
            if self._ended:
                self._end()  # for what was submitted meanwhile

    def _submit(self, message: pb.ScoreStreamRequest | SoftkinError) -> _Pending:
        if isinstance(message, SoftkinError):
            return _Pending(None, self._failure(message), 0.0)
        started = time.perf_counter()
        try:
            if not message.HasField("request"):
                raise InvalidInputError("request", "not set; send what to score")
            detector, call = self._path.decode(message.request)
            decoded = time.perf_counter() - started
            return _Pending(self._enter(detector, call), None, decoded)
        except Exception as error:
            return _Pending(None, self._failure(error), 0.0)

    def _enter(self, detector: ScoringDetector, call: ScoreCall) -> Ticket:
        """Pass the gate. While it is full, wait for this stream's own requests, or `PATIENCE_SECONDS` for others."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            waiting, departures = len(self._tickets), self._path.admission.departures
            try:
                ticket = self._path.submit(detector, call, self._context)
            except OverloadedError as e:
                lost = not waiting and (isinstance(e, UnmeetableError) or time.monotonic() >= end)
                if lost or self._ended:
                    raise
            else:
                self._tickets.append(ticket)
                return ticket
            if waiting:
                with self._progress:
                    while len(self._tickets) >= waiting and not self._ended:
                        self._progress.wait()
            else:
                self._path.admission.await_departure(departures, LOOK_UP_SECONDS)

    def _end(self) -> None:
        """Nobody waits for this stream any more: free the device, and both threads."""
        with self._progress:
            self._ended = True
            self._progress.notify()
        for ticket in list(self._tickets):
            self._path.cancel(ticket)
        self._window.release()
        self._arrived.put(None)

    def _next(self) -> tuple[pb.ScoreStreamResponse | None, bool]:
        """Wait for the next answer, and add those behind it that are ready too; False at the end of the stream."""
        pending = self._held if self._held is not None else self._arrived.get()
        self._held = None
        response, size = pb.ScoreStreamResponse(), 0
        while pending is not None:
            answer = self._answer(pending)
            self._window.release()
            response.answers.append(answer)
            size += answer.ByteSize()
            if size >= MAX_ANSWER_BYTES or self._arrived.empty():
                return response, True
            pending = self._arrived.get()
            if pending is not None and not pending.ready:
                self._held = pending
                return response, True
        return (response if response.answers else None), False

    def _answer(self, pending: _Pending) -> pb.StreamAnswer:
        found = pending.failure
        if pending.ticket is not None:
            try:
                share = pending.ticket.wait()
                return pb.StreamAnswer(response=self._path.encode(share, pending.decode_seconds))
            except Exception as error:
                found = self._failure(error)
            finally:
                with self._progress:
                    self._tickets.popleft()
                    self._progress.notify()
        assert found is not None
        if found.code not in WITH_THE_CALL:
            self._metrics.rejected(found.reason)
        return pb.StreamAnswer(error=found.to_proto())

    def _failure(self, error: Exception) -> Failure:
        return failure(error, METHOD, request_id(self._context.invocation_metadata()))


def _received(requests: Iterator[pb.ScoreStreamRequest]) -> pb.ScoreStreamRequest | SoftkinError | None:
    """The next message, or why it is unfit: that is an answer among others, and not the end. None at the end."""
    try:
        return next(requests, None)
    except SoftkinError as error:
        return error
