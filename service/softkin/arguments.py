"""Arguments that callers pass from Python: in one type, whatever library made them, or an error that names them."""

from __future__ import annotations

import operator
import os
import reprlib
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softkin.errors import InvalidInputError

RATE = "a number strictly in (0, 1)"
SEEDS = 2**64


def as_float(field: str, value: float, what: str = RATE) -> float:
    """A number, NumPy's included, as Python's own; whether it is in range is for others to say.

    Args:
        field: the argument's name.
        value: what was given.
        what: what it must be, for the error.

    Raises:
        InvalidInputError: it is no real number.
    """
    try:
        if type(value) is float or isinstance(value, Real):  # the first is usual, and costs a tenth
            return float(value)
    except OverflowError:
        pass
    raise InvalidInputError(field, f"got {reprlib.repr(value)}; must be {what}")


def as_seed(value: int | None) -> int | None:
    """A smoothing seed, if there is one.

    Raises:
        InvalidInputError: it is no integer in [0, 2^64).
    """
    if value is None:
        return None
    seed = _as_int("smoothing_seed", value, "an integer in [0, 2^64)")
    if not 0 <= seed < SEEDS:
        raise InvalidInputError("smoothing_seed", f"got {seed}; must lie in [0, 2^64)")
    return seed


def as_num_neighbors(value: int) -> int:
    """How many neighbours to give.

    Raises:
        InvalidInputError: it is no integer, or below 0.
    """
    k = _as_int("num_neighbors", value, "an integer, 0 or more")
    if k < 0:
        raise InvalidInputError("num_neighbors", f"got {k}; must be 0 or more")
    return k


def as_path(field: str, value: str | os.PathLike[str]) -> Path:
    """The path; what is there is for others to say.

    Raises:
        InvalidInputError: it is no path.
    """
    try:
        return Path(value)
    except TypeError:  # bytes, too
        raise InvalidInputError(field, f"got {reprlib.repr(value)}; must be a path") from None


def as_rows(value: ArrayLike, field: str = "inputs") -> NDArray[np.generic]:
    """The rows as an array; whether anybody takes such rows is for others to say.

    Raises:
        InvalidInputError: they make no array, or some values of a masked one are hidden.
    """
    if np.ma.is_masked(value):
        raise InvalidInputError(field, "values of a masked array are hidden; give it filled, or leave such rows out")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as e:  # ragged lists, tensors on a GPU or with gradients
        raise InvalidInputError(field, f"they make no array ({e}); give one, with rows of one shape") from None


def as_inputs(x: NDArray[np.generic], dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """The rows, in C order, if a detector of such rows takes them.

    Args:
        x: the rows.
        dtype: of the detector's inputs.
        shape: of one input.

    Raises:
        InvalidInputError: wrong dtype or shape, no rows, NaN or infinity.
    """
    if x.dtype != dtype:
        raise InvalidInputError(
            "inputs",
            f"dtype is {x.dtype}, this detector takes {dtype}; give rows of the type and scale that it was built with",
        )
    if x.ndim != 1 + len(shape) or x.shape[1:] != shape:
        axes = ", ".join(["rows", *map(str, shape)])
        single = f"; send a single row as {[1, *shape]}" if x.shape == shape else ""
        raise InvalidInputError("inputs", f"shape is {list(x.shape)}, this detector takes [{axes}]{single}")
    if len(x) == 0:
        raise InvalidInputError("inputs", "there are no rows; send at least 1")
    if x.dtype.kind == "f":
        finite = np.isfinite(x)
        if not finite.all():
            row = int((~finite.reshape(len(x), -1).all(axis=1)).argmax())
            raise InvalidInputError("inputs", f"row {row} has NaN or infinity; every value must be finite")
    return np.ascontiguousarray(x)


def _as_int(field: str, value: int, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InvalidInputError(field, f"got {reprlib.repr(value)}; must be {what}") from None
