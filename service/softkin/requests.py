"""What a client asks of one detector: its requests, and how an array is split to fit into them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from softkin import descriptions
from softkin.arguments import as_float, as_num_neighbors, as_seed
from softkin.converters import Limits, array_to_tensor
from softkin.errors import InvalidInputError, is_unicode
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import Guarantee

ROW_LENGTH_BYTES = 32
"""Room for the length prefixes and the number of rows, which grow with what a request carries."""


def check_text(**values: str) -> None:
    """Refuse what cannot travel as text; gRPC and protobuf would not say what is wrong.

    Raises:
        InvalidInputError: names the argument, which is no text, or not of Unicode, as file names may be.
    """
    for field, value in values.items():
        if not isinstance(value, str):
            raise InvalidInputError(field, f"got {value!r}; must be text")
        if not is_unicode(value):
            raise InvalidInputError(field, f"got {value!r}; must be text that UTF-8 can spell")


@dataclass(frozen=True)
class Requests:
    """Makes the requests to one detector.

    Args:
        detector: its name; empty for the only one loaded.
        version: its version; empty for the one that carries the label, or serves by default.
        label: instead of a version: the label that it carries.

    Raises:
        InvalidInputError: as `check_text`.
    """

    detector: str
    version: str
    label: str

    def __post_init__(self) -> None:
        check_text(**vars(self))

    def head(
        self,
        alpha: float | None,
        guarantee: Guarantee | None,
        confidence: float | None,
        smoothing_seed: int | None,
        num_neighbors: int,
    ) -> pb.ScoreRequest:
        """A request to score, without its rows; arguments as for `Client.score`.

        Raises:
            InvalidInputError: an argument cannot travel.
        """
        return pb.ScoreRequest(
            detector=self.detector,
            version=self.version,
            label=self.label,
            alpha=None if alpha is None else as_float("alpha", alpha),
            guarantee=pb.GUARANTEE_UNSPECIFIED if guarantee is None else descriptions.guarantee_number(guarantee),
            confidence=None if confidence is None else as_float("confidence", confidence),
            smoothing_seed=as_seed(smoothing_seed),
            num_neighbors=min(as_num_neighbors(num_neighbors), 2**32 - 1),
        )

    def description(self) -> pb.GetDetectorRequest:
        """A request for the detector's description and the server's limits."""
        return pb.GetDetectorRequest(detector=self.detector, version=self.version, label=self.label)

    def drift(self) -> pb.GetDriftRequest:
        """A request for what its drift watch has seen."""
        return pb.GetDriftRequest(detector=self.detector, version=self.version, label=self.label)


def fill(head: pb.ScoreRequest, rows: NDArray[np.generic]) -> pb.ScoreRequest:
    """Put rows into the head, instead of any that it had, and return it.

    Raises:
        InvalidInputError: their dtype cannot travel.
    """
    head.inputs.CopyFrom(array_to_tensor(rows))
    return head


def split(x: NDArray[np.generic], head: pb.ScoreRequest, limits: Limits) -> list[NDArray[np.generic]]:
    """Consecutive rows of an array, as many at a time as one request may have.

    Args:
        x: `[B, ...]`; one without rows is returned as it is.
        head: what goes with them; it loses any rows that it had.
        limits: of the server.

    Raises:
        InvalidInputError: one row alone is too large, or the dtype cannot travel.
    """
    if x.ndim == 0 or len(x) == 0:
        return [x]  # for the server to refuse, with its own words
    row_bytes = x[:1].nbytes
    head.ClearField("inputs")
    room = limits.max_message_bytes - head.ByteSize() - array_to_tensor(x[:0]).ByteSize()
    fitting = (room - ROW_LENGTH_BYTES) // max(row_bytes, 1)
    if fitting < 1:
        raise InvalidInputError(
            "inputs",
            f"one row has {row_bytes} bytes, and a whole request may have max_message_bytes = "
            f"{limits.max_message_bytes}; raise that limit of the server",
        )
    step = min(limits.max_rows, fitting)
    return [x[i : i + step] for i in range(0, len(x), step)]


class LearnsLimits:
    """A client that remembers the server's limits, until an error about them: they may have changed with the server."""

    _limits: Limits | None = None

    def _learnt(self, error: BaseException) -> BaseException:
        """Return the error; if it is about limits, forget them, so that the server is asked again."""
        if isinstance(error, InvalidInputError) and (
            error.field == "message" or any(limit.name in error.message for limit in fields(Limits))
        ):
            self._limits = None
        return error
