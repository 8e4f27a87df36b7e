"""Arrays in, Scores out: the same type and the same numbers as scoring in process."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from softkin import converters, descriptions
from softkin.client_channel import SERVICE, File, call_metadata, open_channel
from softkin.converters import Limits
from softkin.descriptions import DetectorInfo, DriftInfo
from softkin.errors import (
    AuthenticationError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SoftkinError,
    UnavailableError,
)
from softkin.scores import ErrorBudget, Neighbors, Scores
from softkin.statuses import RETRY_AFTER
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from softkin.verdicts import Guarantee, select

ROW_LENGTH_BYTES = 32
"""Room for the length prefixes and the number of rows, which grow with what a request carries."""


class Client:
    """A connection to a softkin server; safe to share between threads.

    Args:
        target: `HOST:PORT`, or any gRPC target such as `dns:///softkin:50051`.
        timeout_seconds: deadline of each request, retries included.
        detector: name of the detector; empty for the only one loaded.
        version: its version; empty for the one that serves by default.
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
        timeout_seconds: float = 30,
        detector: str = "",
        version: str = "",
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
        tls_server_name: str | None = None,
        token: str | None = None,
    ) -> None:
        self._target = target
        self._timeout_seconds = timeout_seconds
        self._detector = detector
        self._version = version
        self._metadata = call_metadata(token, target, encrypted=tls_ca is not None)
        self._channel = open_channel(
            target, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, tls_server_name=tls_server_name
        )
        self._stub = pb_grpc.OutlierServiceStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._limits: Limits | None = None

    def score(
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
            x: `[B, ...]`, of the dtype and shape that `detector_info` gives; nothing is converted.
            alpha: rate to accept; the server's default when None.
            guarantee: what alpha promises, see `softkin.verdicts`; the server's default when None. With
                `false_discovery_rate` rows are selected among all of `x`, however many requests that takes.
            confidence: of `certified`, and of the bound that the error budget states; the server's default when None.
            smoothing_seed: in [0, 2^64), for smoothed p-values; deterministic ones when None.
            num_neighbors: nearest training rows per row and layer to return; 0 for none.

        Returns:
            One answer for all rows; `stage_seconds` are summed over the requests.

        Raises:
            InvalidInputError: the server, or this client on its behalf, refuses the arguments.
            NotFoundError: no such detector or version.
            AuthenticationError: the server does not let this client in.
            OverloadedError: too much is pending on the server.
            UnavailableError: no answer in time, or the detector was replaced between two requests.
            SoftkinError: a fault of the server.
        """
        x = np.asarray(x)
        if num_neighbors < 0:
            raise InvalidInputError("num_neighbors", f"got {num_neighbors}; must be 0 or more")
        if smoothing_seed is not None and not 0 <= smoothing_seed < 2**64:
            raise InvalidInputError("smoothing_seed", f"got {smoothing_seed}; must lie in [0, 2^64)")
        head = pb.ScoreRequest(
            detector=self._detector,
            version=self._version,
            alpha=alpha,
            guarantee=pb.GUARANTEE_UNSPECIFIED if guarantee is None else descriptions.guarantee_number(guarantee),
            confidence=confidence,
            smoothing_seed=smoothing_seed,
            num_neighbors=min(num_neighbors, 2**32 - 1),
        )
        parts: list[Scores] = []
        for rows in self._split(x, head):
            head.inputs.CopyFrom(converters.array_to_tensor(rows))
            parts.append(converters.proto_to_scores(self._call(self._stub.Score, head)))
        return _join(parts)

    def detector_info(self) -> DetectorInfo:
        """What the detector takes, what it was calibrated with and where it runs.

        Raises:
            NotFoundError: no such detector or version.
            UnavailableError: no answer in time.
        """
        return descriptions.proto_to_detector_info(self._describe().detector)

    def drift(self) -> DriftInfo:
        """What the server's drift watch of the detector has seen.

        Raises:
            NotFoundError: no such detector or version.
            UnavailableError: no answer in time.
        """
        request = pb.GetDriftRequest(detector=self._detector, version=self._version)
        return descriptions.proto_to_drift(self._call(self._stub.GetDrift, request))

    def healthy(self) -> bool:
        """Whether the server is ready to score; False too when it cannot be reached."""
        try:
            return self.check_health()
        except SoftkinError:
            return False

    def check_health(self) -> bool:
        """Whether the server says that it is ready to score.

        Raises:
            UnavailableError: no answer in time, or TLS does not come about; the message says why.
        """
        answer = self._call(self._health.Check, health_pb2.HealthCheckRequest(service=SERVICE))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _describe(self) -> pb.GetDetectorResponse:
        request = pb.GetDetectorRequest(detector=self._detector, version=self._version)
        answer: pb.GetDetectorResponse = self._call(self._stub.GetDetector, request)
        self._limits = converters.proto_to_limits(answer.limits)
        return answer

    def _split(self, x: NDArray[np.generic], head: pb.ScoreRequest) -> list[NDArray[np.generic]]:
        limits = self._limits or converters.proto_to_limits(self._describe().limits)
        if x.ndim == 0 or len(x) == 0:
            return [x]  # for the server to refuse, with its own words
        row_bytes = x[0].nbytes
        room = limits.max_message_bytes - head.ByteSize() - converters.array_to_tensor(x[:0]).ByteSize()
        fitting = (room - ROW_LENGTH_BYTES) // max(row_bytes, 1)
        if fitting < 1:
            raise InvalidInputError(
                "inputs",
                f"one row has {row_bytes} bytes, and a whole request may have max_message_bytes = "
                f"{limits.max_message_bytes}; raise that limit of the server",
            )
        step = min(limits.max_rows, fitting)
        return [x[i : i + step] for i in range(0, len(x), step)]

    def _call(self, method: Any, request: Message) -> Any:  # generated stubs carry no types
        try:
            return method(request, timeout=self._timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as e:
            raise _error(e, self._target) from None


def _error(e: Any, target: str) -> SoftkinError:
    """The softkin error that a status stands for."""
    code, details = e.code(), e.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, message = details.partition(": ")
        return InvalidInputError(field, message)
    if code is grpc.StatusCode.NOT_FOUND:
        return NotFoundError(details)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AuthenticationError(f"{target}: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        milliseconds = dict(e.trailing_metadata() or ()).get(RETRY_AFTER, "0")
        return OverloadedError(f"{target}: {details}", float(milliseconds) / 1000)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return UnavailableError(f"{target}: {details}")
    return SoftkinError(f"{target}: {code.name}: {details}")


def _join(parts: list[Scores]) -> Scores:
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(_without_selection(p.budget) != _without_selection(first.budget) for p in parts):
        raise UnavailableError("the detector was replaced between two requests for one array; score the array again")
    arrays = (
        "outlier_score",
        "p_value",
        "is_outlier",
        "predicted_class",
        "credibility",
        "confidence",
        "class_p_values",
    )
    seconds = {k: sum(p.stage_seconds.get(k, 0.0) for p in parts) for k in first.stage_seconds}
    joined: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in arrays}
    return replace(
        _select_again(replace(first, **joined)),
        neighbors=_join_neighbors([p.neighbors for p in parts if p.neighbors is not None]),
        stage_seconds=seconds,
    )


def _without_selection(budget: ErrorBudget) -> ErrorBudget:
    """What must be the same in all answers for one array; a selection's threshold is each request's own."""
    if budget.guarantee != "false_discovery_rate":
        return budget
    return replace(budget, p_value_threshold=0.0, fewest_selectable=None)


def _select_again(joined: Scores) -> Scores:
    """Select among all rows where each request has selected among its own."""
    b = joined.budget
    if b.guarantee != "false_discovery_rate":
        return joined
    found = select(joined.p_value, b.calibration_size, b.alpha)
    return replace(
        joined,
        is_outlier=found.is_outlier,
        budget=replace(b, p_value_threshold=found.p_value_threshold, fewest_selectable=found.fewest_selectable),
    )


def _join_neighbors(parts: list[Neighbors]) -> Neighbors | None:
    if not parts:
        return None
    arrays = ("ids", "labels", "distances", "shares")
    joined: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in arrays}
    return replace(parts[0], **joined)
