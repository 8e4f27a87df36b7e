"""The outlier service: convert, call, convert. Errors become statuses in `CallInterceptor`."""

from __future__ import annotations

import threading
import time

import grpc

from softkin import converters, descriptions
from softkin.admission import Admission, ended
from softkin.cancellation import Cancellation
from softkin.drift_watches import DriftWatches
from softkin.errors import CancelledError, UnavailableError
from softkin.metrics import Metrics
from softkin.registry import Registry, ScoringDetector
from softkin.settings import ServerSettings
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc


class OutlierServicer(pb_grpc.OutlierServiceServicer):
    """Answers while `ready` is set; before that, only that the server is starting."""

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        metrics: Metrics,
        admission: Admission,
        watches: DriftWatches,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._admission = admission
        self._watches = watches
        self.ready = threading.Event()
        self._limits = converters.Limits(
            max_rows=settings.max_rows,
            max_message_bytes=settings.max_message_bytes,
            max_neighbors=settings.max_neighbors,
        )

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:  # noqa: N802
        """Score a batch of rows."""
        clock = time.perf_counter
        started = clock()
        detector = self._find(request.detector, request.version)
        call = converters.decode_score_request(request, self._limits)
        alpha = self._settings.alpha if call.alpha is None else call.alpha
        confidence = self._settings.confidence if call.confidence is None else call.confidence
        decoded = clock()
        cancellation = Cancellation()
        with self._admission.turn(len(call.inputs) if call.inputs.ndim else 0, context):
            # A caller who has gone, or whose deadline has passed, frees the device within one chunk of the bank.
            if not context.add_callback(cancellation.cancel):
                raise ended(context)
            admitted = clock()
            try:
                scores = detector.score(
                    call.inputs,
                    alpha=alpha,
                    guarantee=call.guarantee or self._settings.guarantee,
                    confidence=confidence,
                    smoothing_seed=call.smoothing_seed,
                    num_neighbors=call.num_neighbors,
                    cancellation=cancellation,
                )
            except CancelledError:
                raise ended(context) from None
        scored = clock()
        response = converters.scores_to_proto(scores)
        response.stage_seconds.update(decode=decoded - started, queue=admitted - decoded, encode=clock() - scored)
        self._metrics.scored(scores, response.stage_seconds)
        self._watches.observe(scores)
        return response

    def GetDetector(self, request: pb.GetDetectorRequest, context: grpc.ServicerContext) -> pb.GetDetectorResponse:  # noqa: N802
        """Describe one detector."""
        detector = self._find(request.detector, request.version)
        return pb.GetDetectorResponse(detector=self._info(detector), limits=converters.limits_to_proto(self._limits))

    def ListDetectors(  # noqa: N802
        self, request: pb.ListDetectorsRequest, context: grpc.ServicerContext
    ) -> pb.ListDetectorsResponse:
        """Describe all detectors."""
        detectors = [self._info(d) for d in self._registry] if self.ready.is_set() else []
        return pb.ListDetectorsResponse(detectors=detectors, limits=converters.limits_to_proto(self._limits))

    def GetDrift(self, request: pb.GetDriftRequest, context: grpc.ServicerContext) -> pb.GetDriftResponse:  # noqa: N802
        """What the drift watch of one detector has seen."""
        detector = self._find(request.detector, request.version)
        return descriptions.drift_to_proto(self._watches.report(detector, self.default_alpha(detector)), detector)

    def default_alpha(self, detector: ScoringDetector) -> float:
        """The false-alarm rate used when a request names none."""
        return detector.manifest.default_alpha if self._settings.alpha is None else self._settings.alpha

    def _find(self, name: str, version: str) -> ScoringDetector:
        if not self.ready.is_set():
            raise UnavailableError("the server is starting; retry when the health service reports SERVING")
        return self._registry.get(name, version)

    def _info(self, detector: ScoringDetector) -> pb.DetectorInfo:
        s = self._settings
        return descriptions.detector_to_proto(detector, self.default_alpha(detector), s.guarantee, s.confidence)
