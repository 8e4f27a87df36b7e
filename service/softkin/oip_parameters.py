"""The parameters of a request in the Open Inference Protocol: what is known, and what to do instead of the rest."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from softkin.converters import Limits, check_num_neighbors
from softkin.errors import InvalidInputError
from softkin.inference import grpc_service_pb2 as pb
from softkin.verdicts import Guarantee, check_guarantee

T = TypeVar("T", float, int, str)

MAX_INTEGER = 2**64 - 1
_SEQUENCE = "; every row is scored by itself"
_MEMORY = "; send elements in raw_input_contents, outputs come in raw_output_contents"
REMEDIES = {
    "timeout": "; give the call a deadline instead (client_timeout in tritonclient)",
    "priority": "; all requests are equal",
    "classification": "; a row's classes are in predicted_class and class_p_values",
    "sequence_id": _SEQUENCE,
    "sequence_start": _SEQUENCE,
    "sequence_end": _SEQUENCE,
    "shared_memory_region": _MEMORY,
    "shared_memory_byte_size": _MEMORY,
    "shared_memory_offset": _MEMORY,
}
"""Parameters by which clients ask other servers for something, and what to do here."""
HARMLESS = frozenset(
    {
        # About models that answer a request several times; perf_analyzer sets it in every request.
        "triton_enable_empty_final_response",
        # How elements travel over HTTP; KServe's client sets them over gRPC too, where fields say it.
        "binary_data",
        "binary_data_output",
        "binary_data_size",
    }
)
"""Parameters that clients set without being asked and that can mean nothing here."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a request asks for beside its rows; as in `ScoreCall`."""

    alpha: float | None = None
    guarantee: Guarantee | None = None
    confidence: float | None = None
    smoothing_seed: int | None = None
    num_neighbors: int = 0


def decode_options(parameters: Mapping[str, pb.InferParameter], limits: Limits) -> Options:
    """The options that parameters state.

    Raises:
        InvalidInputError: an unknown parameter, or a value of the wrong kind or out of range.
    """
    named = sorted(name for name in parameters if name not in HARMLESS)
    refuse_unknown("parameters", named, OPTIONS)
    given: dict[str, Any] = {name: OPTIONS[name](name, parameters[name]) for name in named}
    options = Options(**given)
    check_num_neighbors(options.num_neighbors, limits)
    return options


def refuse_unknown(field: str, parameters: Iterable[str], known: Iterable[str] = ()) -> None:
    """Refuse parameters without a meaning, but for the harmless: nothing that a caller asks for is ignored.

    Raises:
        InvalidInputError: names the first of them.
    """
    for name in sorted(set(parameters).difference(known, HARMLESS)):
        allowed = ", ".join(known) or "none"
        raise InvalidInputError(field, f"got {reprlib.repr(name)}; allowed: {allowed}{REMEDIES.get(name, '')}")


def _number(name: str, parameter: pb.InferParameter) -> float:
    return _read(name, parameter, float, ("double_param", "int64_param", "uint64_param", "string_param"))


def _integer(name: str, parameter: pb.InferParameter) -> int:
    return _read(name, parameter, int, ("int64_param", "uint64_param", "string_param"))


def _seed(name: str, parameter: pb.InferParameter) -> int:
    value = _integer(name, parameter)
    if not 0 <= value <= MAX_INTEGER:
        raise InvalidInputError(name, f"got {value}; it must lie between 0 and {MAX_INTEGER}")
    return value


def _guarantee(name: str, parameter: pb.InferParameter) -> Guarantee:
    return check_guarantee(_read(name, parameter, str, ("string_param",)))


def _read(name: str, parameter: pb.InferParameter, parse: Callable[[str], T], kinds: tuple[str, ...]) -> T:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in kinds:
        raise InvalidInputError(name, f"has {kind or 'no value'}; allowed: {', '.join(kinds)}")
    value = getattr(parameter, kind)
    try:
        return parse(value)
    except ValueError:
        raise InvalidInputError(name, f"got {reprlib.repr(value)}, which is no {_WORDS[parse]}") from None


_WORDS: dict[Callable[[str], object], str] = {float: "number", int: "integer"}
OPTIONS: dict[str, Callable[[str, pb.InferParameter], object]] = {
    "alpha": _number,
    "guarantee": _guarantee,
    "confidence": _number,
    "smoothing_seed": _seed,
    "num_neighbors": _integer,
}
"""What a request can ask for beside its rows, and how each is read."""
