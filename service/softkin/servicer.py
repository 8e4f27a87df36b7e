"""The outlier service: convert, call, convert. Errors become statuses in `CallInterceptor`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc

from softkin import converters, descriptions
from softkin.drift_watches import DriftWatches
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scoring import ScoringPath
from softkin.scoring_detector import ScoringDetector
from softkin.settings import ServerSettings
from softkin.streaming import Streams
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc


class OutlierServicer(pb_grpc.OutlierServiceServicer):
    """Answers while the scoring path is ready; before that, only that the server is starting."""

    def __init__(
        self, settings: ServerSettings, registry: Registry, metrics: Metrics, path: ScoringPath, watches: DriftWatches
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._path = path
        self._watches = watches
        self._streams = Streams(path, metrics, max_streams=settings.max_streams, window=settings.stream_window)

    def Score(self, request: pb.ScoreRequest, context: grpc.ServicerContext) -> pb.ScoreResponse:  # noqa: N802
        """Score a batch of rows."""
        started = time.perf_counter()
        self._path.admission.refuse_full()
        detector, call = self._path.decode(request)
        decoded = time.perf_counter() - started
        return self._path.encode(self._path.score(detector, call, context), decoded)

    def ScoreStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ScoreStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreStreamResponse]:
        """Score batch after batch."""
        return self._streams.answer(request_iterator, context)

    def GetDetector(self, request: pb.GetDetectorRequest, context: grpc.ServicerContext) -> pb.GetDetectorResponse:  # noqa: N802
        """Describe one detector."""
        detector = self._path.find(request.detector, request.version, request.label)
        return pb.GetDetectorResponse(detector=self.info(detector), limits=self._limits())

    def ListDetectors(  # noqa: N802
        self, request: pb.ListDetectorsRequest, context: grpc.ServicerContext
    ) -> pb.ListDetectorsResponse:
        """Describe all detectors."""
        detectors = [self.info(d) for d in self._registry] if self._path.ready else []
        return pb.ListDetectorsResponse(detectors=detectors, limits=self._limits())

    def GetDrift(self, request: pb.GetDriftRequest, context: grpc.ServicerContext) -> pb.GetDriftResponse:  # noqa: N802
        """What the drift watch of one detector has seen."""
        detector = self._path.find(request.detector, request.version, request.label)
        return descriptions.drift_to_proto(self._watches.report(detector, self._path.default_alpha(detector)), detector)

    def _limits(self) -> pb.Limits:
        return converters.limits_to_proto(self._path.limits)

    def info(self, detector: ScoringDetector) -> pb.DetectorInfo:
        """Describe a detector as it is served here."""
        s, labels = self._settings, self._registry.labels_of(detector)
        alpha = self._path.default_alpha(detector)
        return descriptions.detector_to_proto(detector, alpha, s.guarantee, s.confidence, labels)
