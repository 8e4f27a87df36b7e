"""Between the wire and the domain, both ways, and every check of a request that needs no detector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softkin.arguments import as_rows
from softkin.descriptions import GUARANTEE_NUMBERS, guarantee_number, guarantee_of
from softkin.errors import InvalidInputError
from softkin.scores import ErrorBudget, Neighbors, Parts, Scores, Share
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import Guarantee

T = TypeVar("T", bound=np.generic)

MAX_AXES = 8
DTYPES: dict[pb.DataType, np.dtype[np.generic]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
}
_NUMBERS = {(dtype.kind, dtype.itemsize): number for number, dtype in DTYPES.items()}
_GUARANTEES_OR_NONE = {*GUARANTEE_NUMBERS.values(), pb.GUARANTEE_UNSPECIFIED}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts."""

    max_rows: int
    """Rows in one request."""
    max_message_bytes: int
    """Bytes in one request message."""
    max_neighbors: int
    """Neighbours per row and layer."""
    max_pending_rows: int
    """Rows that all requests together may have pending."""
    max_pending_bytes: int
    """Bytes of inputs that all requests together may have pending."""
    stream_window: int
    """Requests of one stream that may be unanswered before the server stops reading it."""


class ScoreCall(NamedTuple):
    """A checked request."""

    inputs: NDArray[np.generic]
    alpha: float | None
    guarantee: Guarantee | None
    confidence: float | None
    smoothing_seed: int | None
    num_neighbors: int


def tensor_to_array(tensor: pb.Tensor, field: str) -> NDArray[np.generic]:
    """The array that a tensor holds: a read-only view of its bytes.

    Args:
        tensor: from a peer; nothing about it is trusted.
        field: its path in the message, for errors.

    Raises:
        InvalidInputError: unknown dtype, more than 8 axes, a negative axis, or bytes that do not match the shape.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        allowed = ", ".join(pb.DataType.Name(number) for number in DTYPES)
        name = pb.DataType.Name(tensor.dtype) if tensor.dtype in pb.DataType.values() else "unknown"
        raise InvalidInputError(f"{field}.dtype", f"got {int(tensor.dtype)} ({name}); allowed: {allowed}")
    return bytes_to_array(tensor.data, dtype, tensor.shape, shape_field=f"{field}.shape", data_field=f"{field}.data")


def bytes_to_array(
    data: bytes, dtype: np.dtype[np.generic], shape: Iterable[int], *, shape_field: str, data_field: str
) -> NDArray[np.generic]:
    """The array whose elements are these bytes: a read-only view of them.

    Raises:
        InvalidInputError: more than 8 axes, a negative axis, or bytes that do not match the shape.
    """
    axes = check_axes(shape, shape_field)
    expected = math.prod(axes) * dtype.itemsize  # Python integers: no product of axes can wrap around to a match
    if len(data) != expected:
        raise InvalidInputError(
            data_field,
            f"has {len(data)} bytes, but shape {list(axes)} of {dtype.name} takes {expected}; send all elements, in "
            "C order, little-endian",
        )
    array = shaped(np.frombuffer(data, dtype), axes, shape_field)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def check_axes(shape: Iterable[int], field: str) -> tuple[int, ...]:
    """The axes that a peer claims.

    Raises:
        InvalidInputError: more than 8, or a negative one.
    """
    axes = tuple(shape)
    if len(axes) > MAX_AXES:
        raise InvalidInputError(field, f"got {len(axes)} axes; at most {MAX_AXES} are allowed")
    if axes and min(axes) < 0:
        raise InvalidInputError(field, f"got {list(axes)}; no axis may be negative")
    return axes


def shaped(elements: NDArray[T], axes: tuple[int, ...], field: str) -> NDArray[T]:
    """Elements, as many as the axes take, in that shape.

    Raises:
        InvalidInputError: there are none, yet the other axes multiply past what an index can hold.
    """
    try:
        return elements.reshape(axes)
    except ValueError:
        raise InvalidInputError(field, f"got {list(axes)}; these axes are too long") from None


def array_to_tensor(array: ArrayLike, field: str = "inputs") -> pb.Tensor:
    """The tensor that carries an array.

    Raises:
        InvalidInputError: a dtype or number of axes that cannot travel.
    """
    a = as_rows(array, field)
    number = _NUMBERS.get((a.dtype.kind, a.dtype.itemsize))
    if number is None:
        allowed = ", ".join(d.name for d in DTYPES.values())
        raise InvalidInputError(field, f"dtype is {a.dtype}, which cannot travel; convert to one of: {allowed}")
    if a.ndim > MAX_AXES:
        raise InvalidInputError(field, f"got {a.ndim} axes; at most {MAX_AXES} are allowed")
    return pb.Tensor(dtype=number, shape=a.shape, data=a.astype(DTYPES[number], copy=False).tobytes())


def decode_score_request(request: pb.ScoreRequest, limits: Limits) -> ScoreCall:
    """Check a request against what holds for every detector.

    Raises:
        InvalidInputError: names the field, the value and what is allowed.
    """
    has = request.HasField
    if not has("inputs"):
        raise InvalidInputError("inputs", "not set; send the rows to score")
    inputs, guarantee, num_neighbors = request.inputs, request.guarantee, request.num_neighbors
    check_rows(inputs.shape, limits, "inputs.shape")
    check_num_neighbors(num_neighbors, limits)
    if guarantee not in _GUARANTEES_OR_NONE:
        allowed = ", ".join(pb.Guarantee.Name(number) for number in GUARANTEE_NUMBERS.values())
        raise InvalidInputError("guarantee", f"got {int(guarantee)}; allowed: {allowed}")
    return ScoreCall(
        inputs=tensor_to_array(inputs, "inputs"),
        alpha=request.alpha if has("alpha") else None,
        guarantee=guarantee_of(guarantee),
        confidence=request.confidence if has("confidence") else None,
        smoothing_seed=request.smoothing_seed if has("smoothing_seed") else None,
        num_neighbors=num_neighbors,
    )


def check_rows(shape: Sequence[int], limits: Limits, field: str) -> None:
    """Refuse more rows than one request may have; the first axis counts them.

    Raises:
        InvalidInputError: there are more.
    """
    if len(shape) > 0 and shape[0] > limits.max_rows:
        raise InvalidInputError(
            field,
            f"got {shape[0]} rows; this server takes at most max_rows = {limits.max_rows}: send several requests",
        )


def check_num_neighbors(num_neighbors: int, limits: Limits) -> None:
    """Refuse more neighbours than a row may get, and fewer than none.

    Raises:
        InvalidInputError: there are.
    """
    if not 0 <= num_neighbors <= limits.max_neighbors:
        raise InvalidInputError(
            "num_neighbors",
            f"got {num_neighbors}; this server gives 0 to max_neighbors = {limits.max_neighbors}",
        )


def share_to_proto(share: Share) -> pb.ScoreResponse:
    """Encode one request's share of scores, without its stage times; `proto_to_scores` gives the same numbers back."""
    scores, rows = share.scores, share.rows
    lists: dict[str, Any] = scores.lists()
    class_p, neighbors, parts = scores.class_p_values, scores.neighbors, scores.parts
    if rows is not None:
        lists = {name: values[rows] for name, values in lists.items()}
        class_p = class_p[rows]
        neighbors = None if neighbors is None else neighbors.take(rows)
        parts = None if parts is None else parts.take(rows)
    response = pb.ScoreResponse(
        **lists,
        class_p_values=pb.Tensor(
            dtype=pb.DATA_TYPE_FLOAT64, shape=class_p.shape, data=class_p.astype("<f8", copy=False).tobytes()
        ),
        budget=_budget_to_proto(scores.budget),
    )
    if (n := neighbors) is not None:
        response.neighbors.CopyFrom(
            pb.Neighbors(
                layers=n.layers,
                ids=array_to_tensor(n.ids),
                labels=array_to_tensor(n.labels),
                distances=array_to_tensor(n.distances),
                shares=array_to_tensor(n.shares),
                names=n.names,
            )
        )
    if parts is not None:
        response.parts.CopyFrom(pb.Parts(names=parts.names, values=array_to_tensor(parts.values)))
    return response


@lru_cache(maxsize=64)
def _budget_to_proto(budget: ErrorBudget) -> pb.ErrorBudget:
    """Made once, as most answers of a detector share it, and copied into each."""
    return pb.ErrorBudget(**{**vars(budget), "guarantee": guarantee_number(budget.guarantee)})


def proto_to_scores(response: pb.ScoreResponse) -> Scores:
    """Decode an answer."""
    b = response.budget
    return Scores(
        outlier_score=np.array(response.outlier_score, np.float64),
        p_value=np.array(response.p_value, np.float64),
        is_outlier=np.array(response.is_outlier, np.bool_),
        predicted_class=np.array(response.predicted_class, np.int32),
        credibility=np.array(response.credibility, np.float64),
        confidence=np.array(response.confidence, np.float64),
        class_p_values=_owned(response.class_p_values, "class_p_values", np.float64),
        budget=ErrorBudget(
            detector=b.detector,
            version=b.version,
            digest=b.digest,
            device=b.device,
            guarantee=guarantee_of(b.guarantee) or "unknown",
            alpha=b.alpha,
            confidence=b.confidence,
            p_value_threshold=b.p_value_threshold,
            false_alarm_bound=b.false_alarm_bound if b.HasField("false_alarm_bound") else None,
            fewest_selectable=b.fewest_selectable if b.HasField("fewest_selectable") else None,
            calibration_size=b.calibration_size,
            smallest_p_value=b.smallest_p_value,
            smoothed=b.smoothed,
        ),
        neighbors=_neighbors(response.neighbors) if response.HasField("neighbors") else None,
        parts=_parts(response.parts) if response.HasField("parts") else None,
        stage_seconds=dict(response.stage_seconds),
    )


def _neighbors(n: pb.Neighbors) -> Neighbors:
    return Neighbors(
        layers=tuple(n.layers),
        ids=_owned(n.ids, "neighbors.ids", np.int64),
        labels=_owned(n.labels, "neighbors.labels", np.int32),
        distances=_owned(n.distances, "neighbors.distances", np.float32),
        shares=_owned(n.shares, "neighbors.shares", np.float32),
        names=dict(n.names),
    )


def _parts(p: pb.Parts) -> Parts:
    return Parts(names=tuple(p.names), values=_owned(p.values, "parts.values", np.float64))


def _owned(tensor: pb.Tensor, field: str, dtype: type[T]) -> NDArray[T]:
    """A writable copy, as scoring in process gives."""
    return tensor_to_array(tensor, field).astype(dtype)


def limits_to_proto(limits: Limits) -> pb.Limits:
    """Encode the limits."""
    return pb.Limits(**vars(limits))


def proto_to_limits(limits: pb.Limits) -> Limits:
    """Decode the limits."""
    return Limits(
        max_rows=limits.max_rows,
        max_message_bytes=limits.max_message_bytes,
        max_neighbors=limits.max_neighbors,
        max_pending_rows=limits.max_pending_rows,
        max_pending_bytes=limits.max_pending_bytes,
        stream_window=limits.stream_window,
    )
