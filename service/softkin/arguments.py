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


def _as_int(field: str, value: int, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InvalidInputError(field, f"got {reprlib.repr(value)}; must be {what}") from None
