"""Arrays in, Scores out: the same type and the same numbers as scoring in process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from softkin import converters, descriptions
from softkin.client_channel import SERVICE, File
from softkin.client_errors import answer_error
from softkin.connection import Connection
from softkin.converters import Limits
from softkin.descriptions import DetectorInfo, DriftInfo
from softkin.errors import InvalidInputError, SoftkinError
from softkin.joining import join
from softkin.scores import Scores
from softkin.v1 import outlier_pb2 as pb
from softkin.v1 import outlier_pb2_grpc as pb_grpc
from softkin.verdicts import Guarantee

ROW_LENGTH_BYTES = 32
"""Room for the length prefixes and the number of rows, which grow with what a request carries."""


class Client(Connection):
    """A connection to a softkin server; safe to share between threads.

    Args:
        target: `HOST:PORT`, or any gRPC target such as `dns:///softkin:50051`.
        timeout_seconds: deadline of each request, retries included.
        detector: name of the detector; empty for the only one loaded.
        version: its version; empty for the one that carries the label, or serves by default.
        label: instead of a version: the label that it carries.
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
        label: str = "",
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
        tls_server_name: str | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(
            target,
            timeout_seconds=timeout_seconds,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_server_name=tls_server_name,
            token=token,
        )
        self._detector = detector
        self._version = version
        self._label = label
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
        head = self._head(alpha, guarantee, confidence, smoothing_seed, num_neighbors)
        parts: list[Scores] = []
        for rows in self._split(np.asarray(x), head):
            head.inputs.CopyFrom(converters.array_to_tensor(rows))
            parts.append(converters.proto_to_scores(self._call(self._stub.Score, head)))
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
        is given in its turn. The call lasts as long as there are arrays: `timeout_seconds` does not end it. It is not
        tried again when it fails.

        Args:
            batches: arrays, each as for `score`.
            alpha: as for `score`, for all; so are the others. `false_discovery_rate` selects within each array.
            guarantee: see `score`.
            confidence: see `score`.
            smoothing_seed: see `score`.
            num_neighbors: see `score`.

        Raises:
            Whatever `batches` raises, and the errors of `score`, where the array's answer would have come.
        """
        head = self._head(alpha, guarantee, confidence, smoothing_seed, num_neighbors)
        self._known_limits()
        sender = _Sender(batches, lambda x: self._split(x, head), head)
        call = self._stub.ScoreStream(iter(sender), metadata=self._metadata)
        try:
            answers = (answer for response in call for answer in response.answers)
            for answer in answers:
                parts = [self._decode(answer)]
                parts += [self._decode(next(answers)) for _ in range(sender.parts_of_next() - 1)]
                yield join(parts)
            if sender.error is not None:
                raise sender.error
        except grpc.RpcError as e:
            # An iterator that raises makes gRPC end the call; the cause is here.
            raise sender.error or self._error(e) from None
        finally:
            call.cancel()

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
        request = pb.GetDriftRequest(detector=self._detector, version=self._version, label=self._label)
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

    def _describe(self) -> pb.GetDetectorResponse:
        request = pb.GetDetectorRequest(detector=self._detector, version=self._version, label=self._label)
        answer: pb.GetDetectorResponse = self._call(self._stub.GetDetector, request)
        self._limits = converters.proto_to_limits(answer.limits)
        return answer

    def _head(
        self,
        alpha: float | None,
        guarantee: Guarantee | None,
        confidence: float | None,
        smoothing_seed: int | None,
        num_neighbors: int,
    ) -> pb.ScoreRequest:
        """A request without its rows."""
        if num_neighbors < 0:
            raise InvalidInputError("num_neighbors", f"got {num_neighbors}; must be 0 or more")
        if smoothing_seed is not None and not 0 <= smoothing_seed < 2**64:
            raise InvalidInputError("smoothing_seed", f"got {smoothing_seed}; must lie in [0, 2^64)")
        return pb.ScoreRequest(
            detector=self._detector,
            version=self._version,
            label=self._label,
            alpha=alpha,
            guarantee=pb.GUARANTEE_UNSPECIFIED if guarantee is None else descriptions.guarantee_number(guarantee),
            confidence=confidence,
            smoothing_seed=smoothing_seed,
            num_neighbors=min(num_neighbors, 2**32 - 1),
        )

    def _known_limits(self) -> Limits:
        return self._limits or converters.proto_to_limits(self._describe().limits)

    def _decode(self, answer: pb.StreamAnswer) -> Scores:
        if answer.HasField("error"):
            raise answer_error(answer.error, self._target)
        return converters.proto_to_scores(answer.response)

    def _split(self, x: NDArray[np.generic], head: pb.ScoreRequest) -> list[NDArray[np.generic]]:
        limits = self._known_limits()
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


class _Sender:
    """The requests of a stream, taken by gRPC's own thread; remembers how many each array takes."""

    def __init__(
        self,
        batches: Iterable[NDArray[np.generic]],
        split: Callable[[NDArray[np.generic]], list[NDArray[np.generic]]],
        head: pb.ScoreRequest,
    ) -> None:
        self._batches = batches
        self._split = split
        self._head = head
        self._parts: SimpleQueue[int] = SimpleQueue()
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pb.ScoreStreamRequest]:
        try:
            for x in self._batches:
                parts = self._split(np.asarray(x))
                self._parts.put(len(parts))
                for rows in parts:
                    self._head.inputs.CopyFrom(converters.array_to_tensor(rows))
                    yield pb.ScoreStreamRequest(request=self._head)
        except Exception as e:
            self.error = e  # the stream ends here; what was sent is answered first

    def parts_of_next(self) -> int:
        """How many requests the next array took; it has been sent when its first answer is here."""
        return self._parts.get()
