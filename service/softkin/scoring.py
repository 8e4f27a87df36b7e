"""The one way from a request to its scores, for every kind of call: find, check, admit, batch, count."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import grpc

from softkin import converters
from softkin.admission import Admission
from softkin.batching import Batcher
from softkin.converters import Limits, ScoreCall
from softkin.drift_watches import DriftWatches
from softkin.errors import UnavailableError, UnmeetableError
from softkin.loading import default_alpha
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scores import Scores, Share
from softkin.scoring_detector import ScoringDetector
from softkin.settings import ServerSettings
from softkin.shadow import Shadow
from softkin.tickets import Ticket
from softkin.v1 import outlier_pb2 as pb

NO_DEADLINE_SECONDS = 1e9
"""gRPC gives no deadline as a time too large for any clock."""


class ScoringPath:
    """Submits requests and collects their answers.

    Args:
        settings: limits, and what requests leave open.
        registry: the detectors.
        metrics: where answers are counted.
        watches: where scored rows are watched for drift.
        callers: tells how many unary calls are under way; the batcher waits a little for those not queued yet.
        describe: told of every answer, where calls are traced.

    Attributes:
        limits: what a request may ask for.
        admission: the gate that every request passes.
        ready: whether requests are answered at all.
        shadow: compares the version labelled `shadow` with what is answered.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        metrics: Metrics,
        watches: DriftWatches,
        *,
        callers: Callable[[], int] = lambda: 0,
        describe: Callable[[Scores], None] | None = None,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._watches = watches
        self.ready = False
        self.describe = describe
        self.admission = Admission(settings)
        self.limits = Limits(
            max_rows=settings.max_rows,
            max_message_bytes=settings.max_message_bytes,
            max_neighbors=settings.max_neighbors,
            max_pending_rows=settings.max_pending_rows,
            max_pending_bytes=settings.max_pending_bytes,
            stream_window=settings.stream_window,
        )
        self.shadow = Shadow(
            settings, registry, metrics, busy=lambda: self._batcher.queued_rows >= settings.max_batch_rows
        )
        self._batcher = Batcher(
            workers=settings.workers,
            max_batch_rows=settings.max_batch_rows,
            delay_seconds=settings.batch_delay_seconds,
            scored=self._scored,
            ran=metrics.batch_ran,
            answered=self.shadow.offer,
        )
        self._batcher.callers = callers
        metrics.pending_rows.set_function(lambda: self.admission.pending_rows)
        metrics.pending_bytes.set_function(lambda: self.admission.pending_bytes)
        metrics.pending_requests.set_function(lambda: self.admission.pending_requests)
        metrics.queued_rows.set_function(lambda: self._batcher.queued_rows)

    def find(self, name: str, version: str = "", label: str = "") -> ScoringDetector:
        """The detector that a request names.

        Raises:
            UnavailableError: the server is starting.
            InvalidInputError, NotFoundError: as `Registry.get`.
        """
        if not self.ready:
            raise UnavailableError("the server is starting; retry when the health service reports SERVING")
        return self._registry.get(name, version, label)

    def default_alpha(self, detector: ScoringDetector) -> float:
        """The false-alarm rate used when a request names none."""
        return default_alpha(self._settings, detector)

    def submit(self, detector: ScoringDetector, call: ScoreCall, context: grpc.ServicerContext) -> Ticket:
        """Check a request of a stream, admit it and queue it.

        Raises:
            InvalidInputError: names the field, the value and what is allowed.
            OverloadedError: too much is pending.
            UnmeetableError: what is pending leaves no time for the deadline.
        """
        ticket = self._admit(detector, call, context, reader=id(context))
        try:
            self._batcher.submit(ticket)
        except BaseException:
            self._batcher.cancel(ticket)
            raise
        return ticket

    def _admit(
        self, detector: ScoringDetector, call: ScoreCall, context: grpc.ServicerContext, reader: int | None = None
    ) -> Ticket:
        rule = detector.rule(
            alpha=default_alpha(self._settings, detector) if call.alpha is None else call.alpha,
            guarantee=call.guarantee or self._settings.guarantee,
            confidence=self._settings.confidence if call.confidence is None else call.confidence,
            smoothed=call.smoothing_seed is not None,
        )
        x = detector.check(call.inputs)
        share = len(x), x.nbytes
        remaining = context.time_remaining()
        limited = remaining is not None and remaining < NO_DEADLINE_SECONDS
        ticket = Ticket(
            detector,
            x,
            rule,
            num_neighbors=call.num_neighbors,
            smoothing_seed=call.smoothing_seed,
            deadline=time.monotonic() + remaining if limited else math.inf,
            reader=reader,
            ended=partial(self.admission.leave, *share),
        )
        if limited and (expected := self._batcher.expected_seconds(ticket)) > remaining:
            raise UnmeetableError(
                f"behind what is pending this request would take about {expected:.3g} s, its deadline is in "
                f"{max(remaining, 0.0):.3g} s; allow more time, or retry after {expected:.3g} s",
                expected,
            )
        self.admission.enter(*share)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more."""
        self._batcher.cancel(ticket)

    def score(self, detector: ScoringDetector, call: ScoreCall, context: grpc.ServicerContext) -> Share:
        """Score the rows of a unary call.

        Raises:
            CancelledError, ExpiredError: the caller no longer waits.
            DeviceError: the device failed on it.
            InvalidInputError, OverloadedError, UnmeetableError: as `submit`.
        """
        ticket = self._admit(detector, call, context)
        # A caller who has gone, or whose deadline has passed, frees the device within one chunk of the bank. What the
        # batcher refuses leaves the gate so, too: with the end of its call.
        if not context.add_callback(partial(self._batcher.cancel, ticket)):
            self._batcher.cancel(ticket)
        return self._batcher.score(ticket)

    def decode(self, request: pb.ScoreRequest) -> tuple[ScoringDetector, ScoreCall]:
        """The detector and the checked arguments of a request.

        Raises:
            UnavailableError, InvalidInputError, NotFoundError: as `find` and `decode_score_request`.
        """
        detector = self.find(request.detector, request.version, request.label)
        return detector, converters.decode_score_request(request, self.limits)

    def encode(self, share: Share, decode_seconds: float) -> pb.ScoreResponse:
        """The answer for the wire, with its stage times; counts it."""
        started = time.perf_counter()
        response = converters.share_to_proto(share)
        response.stage_seconds.update(self.answered(share, decode_seconds, time.perf_counter() - started))
        return response

    def answered(self, share: Share, decode_seconds: float, encode_seconds: float) -> dict[str, float]:
        """Count and trace an answer, whatever its form on the wire; returns its stage times in seconds."""
        if self.describe is not None:
            self.describe(share.own())
        seconds = share.stage_seconds
        seconds["decode"], seconds["encode"] = decode_seconds, encode_seconds
        self._metrics.answered(len(share), seconds)
        return seconds

    def close(self) -> None:
        """Finish what is queued and end the batcher's threads."""
        self._batcher.close()
        self.shadow.close()

    def _scored(self, scores: Scores) -> None:
        self._metrics.rows_scored(scores)
        self._watches.observe(scores)
