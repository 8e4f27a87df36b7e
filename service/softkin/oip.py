"""The Open Inference Protocol, for clients that know it and not softkin: the same scores by the same way.

One process can hold this module or tritonclient, not both: each brings its own definition of the same messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from softkin import __version__, oip_converters, oip_descriptions
from softkin.errors import InvalidInputError, NotFoundError, UnavailableError
from softkin.inference import grpc_service_pb2 as pb
from softkin.inference import grpc_service_pb2_grpc as pb_grpc
from softkin.registry import Registry
from softkin.scoring import ScoringPath
from softkin.scoring_detector import ScoringDetector
from softkin.settings import ServerSettings

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class InferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Answers in the protocol's words.

    Args:
        settings: limits, and what requests leave open.
        registry: the detectors.
        path: the one way to scores.
        serving: whether the health service reports readiness.
    """

    def __init__(
        self,
        settings: ServerSettings,
        registry: Registry,
        path: ScoringPath,
        serving: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._path = path
        self._serving = serving

    def ServerLive(self, request: pb.ServerLiveRequest, context: grpc.ServicerContext) -> pb.ServerLiveResponse:  # noqa: N802
        """True: it answers."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: pb.ServerReadyRequest, context: grpc.ServicerContext) -> pb.ServerReadyResponse:  # noqa: N802
        """Whether the health service reports readiness."""
        return pb.ServerReadyResponse(ready=self._serving())

    def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.ServicerContext) -> pb.ModelReadyResponse:  # noqa: N802
        """False also for what is not loaded: who polls for it wants no error."""
        try:
            self._find(request.name, request.version, "name")
        except (NotFoundError, UnavailableError):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._serving())

    def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Which software this is."""
        return pb.ServerMetadataResponse(name="softkin", version=__version__, extensions=["model_configuration"])

    def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Describe a detector."""
        detector = self._find(request.name, request.version, "name")
        name = detector.manifest.name
        return oip_descriptions.model_metadata(
            detector,
            versions=[d.manifest.version for d in self._registry if d.manifest.name == name],
            labels=self._registry.labels_of(detector),
            alpha=self._path.default_alpha(detector),
            guarantee=self._settings.guarantee,
        )

    def ModelConfig(self, request: pb.ModelConfigRequest, context: grpc.ServicerContext) -> pb.ModelConfigResponse:  # noqa: N802
        """Describe a detector as Triton does."""
        return oip_descriptions.model_config(self._find(request.name, request.version, "name"), self._settings)

    def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:  # noqa: N802
        """Score a batch of rows."""
        started = time.perf_counter()
        self._path.admission.refuse_full()
        detector = self._find(request.model_name, request.model_version, "model_name")
        call = oip_converters.decode_infer_request(request, detector.manifest, self._path.limits)
        decoded = time.perf_counter() - started
        share = self._path.score(detector, call, context)
        started = time.perf_counter()
        response = oip_converters.scores_to_response(share.own(), request)
        self._path.answered(share, decoded, time.perf_counter() - started)
        return response

    def _find(self, name: str, version: str, field: str) -> ScoringDetector:
        """The detector of that version, or whose version carries that label: the protocol has no field for labels."""
        if not name:
            names = ", ".join(sorted({d.manifest.name for d in self._registry}))
            raise InvalidInputError(field, f"empty; name a detector: {names or 'none is loaded'}")
        try:
            return self._path.find(name, version)
        except NotFoundError as unknown:
            try:
                return self._path.find(name, label=version)
            except NotFoundError:
                raise unknown from None
