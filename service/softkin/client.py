"""Arrays in, Scores out: the same type and the same numbers as scoring in process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from softkin import converters, descriptions
from softkin.arguments import as_rows
from softkin.client_channel import SERVICE, File
from softkin.client_errors import counted_from
from softkin.client_stream import ClientStream
from softkin.connection import Connection
from softkin.converters import Limits
from softkin.descriptions import DetectorInfo, DriftInfo
from softkin.errors import InvalidInputError, SoftkinError
from softkin.joining import join
from softkin.requests import LearnsLimits, Requests, fill, split
from softkin.scores import Scores
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from softkin.verdicts import Guarantee


class Client(LearnsLimits, Connection):
    """A connection to a softkin server; safe to share between threads.

    Args:
        target: `HOST:PORT`, or any gRPC target such as `dns:///softkin:50051` or, of several servers that take turns,
            `ipv4:10.0.0.1:50051,10.0.0.2:50051`.
        timeout_seconds: deadline of each request, retries included.
        detector: name of the detector; empty for the only one loaded.
        version: its version; empty for the one that carries the label, or serves by default.
        label: instead of a version: the label that it carries.
        tls_ca: PEM file of the authorities of server certificates; plaintext when None.
        tls_cert: PEM file of this client's certificate, for servers that ask for one.
        tls_key: PEM file of its private key, without a password.
        tls_server_name: name that the server's certificate must have; the target's host when None.
        token: bearer token that goes with every call.
        health_checks: watch the health of each server behind the target, and turn away from one that drains before it
            refuses calls. None: where the target lists addresses. True suits a name that has an address for each
            server; not an address that stands for several, as a proxy's does, whose answers would be those of one.

    Raises:
        InvalidInputError: an argument or a file is wrong, or the token would leave this machine in plaintext.
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
        head = self._requests.head(alpha, guarantee, confidence, smoothing_seed, num_neighbors)
        parts: list[Scores] = []
        try:
            for rows in split(as_rows(x), head, self._known_limits()):
                parts.append(converters.proto_to_scores(self._call(self._stub.Score, fill(head, rows))))
        except InvalidInputError as e:
            raise self._learnt(counted_from(e, sum(map(len, parts)))) from None
        return join(parts)

    def score_stream(
        self,
        batches: Iterable[NDArray[np.generic]],
        *,
        alpha: float | None = None,
        guarantee: Guarantee | None = None,
        confidence: float | None = None,
        smoothing_seed: int | None = None,
        num_neighbors: int = 0,
    ) -> Iterator[Scores]:
        """Score arrays as they come, on one call, in bounded memory: faster than one call each.

        Arrays are taken from `batches` in a thread of their own, as far ahead as the server reads; every array's answer
        is given in its turn. The call lasts as long as there are arrays: `timeout_seconds` does not end it, a server
        without a sign of life does, within two minutes. It is not tried again when it fails.

        Args:
            batches: arrays, each as for `score`.
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
        limits = self._known_limits()
        stream = ClientStream(head, lambda x: split(x, head, limits), self._target)
        self._refuse_without_threads()
        call = self._start(self._stub.ScoreStream, _send(batches, stream))
        try:
            for response in call:
                yield from stream.scores(response)
            if (wrong := stream.shortfall()) is not None:
                raise wrong
        except InvalidInputError as e:
            raise self._learnt(e) from None
        except grpc.RpcError as e:
            # Where the iterator of requests raises, gRPC only ends the call; the stream has kept the cause.
            raise self._learnt(stream.error or self._error(e)) from None
        finally:
            call.cancel()

    def detector_info(self) -> DetectorInfo:
        """What the detector takes, what it was calibrated with and where it runs.

        Raises:
            NotFoundError: no such detector or version.
            UnavailableError: no answer in time.
        """
        detector, _ = self._describe()
        return descriptions.proto_to_detector_info(detector)

    def drift(self, of: DetectorInfo | None = None) -> DriftInfo:
        """What the server's drift watch of a detector has seen.

        Args:
            of: one of `detectors`; None for the one that this client scores with.

        Raises:
            NotFoundError: no such detector or version.
            UnavailableError: no answer in time.
        """
        asked = self._requests if of is None else Requests(of.name, of.version, "")
        return descriptions.proto_to_drift(self._call(self._stub.GetDrift, asked.drift()))

    def detectors(self) -> list[DetectorInfo]:
        """All that is loaded, in order of name, then version, whichever one this client scores with.

        Raises:
            UnavailableError: no answer in time.
        """
        answer = self._call(self._stub.ListDetectors, pb.ListDetectorsRequest())
        return [descriptions.proto_to_detector_info(d) for d in answer.detectors]

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

    def _describe(self) -> tuple[pb.DetectorInfo, Limits]:
        answer = self._call(self._stub.GetDetector, self._requests.description())
        self._limits = limits = converters.proto_to_limits(answer.limits)
        return answer.detector, limits

    def _known_limits(self) -> Limits:
        return self._limits or self._describe()[1]


def _send(batches: Iterable[NDArray[np.generic]], stream: ClientStream) -> Iterator[pb.ScoreStreamRequest]:
    """The requests of a stream, taken by gRPC's own thread."""
    handed_over = False
    try:
        for x in batches:
            for request in stream.requests(x):
                handed_over = True
                yield request
                handed_over = False
        stream.all_sent = True
    except BaseException as e:  # SystemExit too: it would end gRPC's thread alone, and the call would wait for ever
        if handed_over:
            raise  # the call has ended
        stream.error = e  # the stream ends here; what was sent is answered first
