"""Arrays of an npz file, checked. Needs no torch: whoever only reads rows need not wait for its import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from softkin.errors import DataError, listed
from softkin.npz import array_of, open_npz
from softkin_training.rows import Naming

Array = NDArray[Any]

NAMES_TRAIN = "names_train"
"""The array that names training rows."""


def read_npz(path: str | Path, keys: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Arrays of an npz file, without pickle.

    Args:
        path: the file.
        keys: arrays it must hold.
        optional: arrays to take along where it holds them.

    Raises:
        DataError: the file cannot be read or lacks a key; says which it holds, and how to write one.
    """
    remedy = f"write it by np.savez with {', '.join(keys)}"
    with open_npz(path, remedy) as file:
        if missing := [k for k in keys if k not in file]:
            raise DataError(f"{path}: lacks {listed(missing)}; it holds {listed(sorted(file))}; {remedy}")
        found = {k: _plain(file, k) for k in [*keys, *(k for k in optional if k in file)]}
    return {k: a.astype(a.dtype.newbyteorder("="), copy=False) for k, a in found.items()}


def _plain(file: NpzFile, key: str) -> Array:
    """One array of an open file; a fault of it names the array."""
    try:
        return array_of(file, key)
    except ValueError as e:
        if "Object arrays" not in str(e):  # as NumPy has it, whose advice is to allow pickle
            raise
        made = f"{key}.astype(float)" if key.startswith("x_") else f"numpy.array({key}.tolist())"
        raise ValueError(f"{key} holds Python objects, as columns of pandas do: store {made}") from None


def checked_labels(arrays: Mapping[str, Array], split: str, num_classes: int, path: str | Path) -> NDArray[np.int64]:
    """`[n]` class indices `y_<split>` of the rows `x_<split>`.

    Args:
        arrays: of the file.
        split: `train` or `test`.
        num_classes: how many class names there are.
        path: the file, for messages.

    Raises:
        DataError: not one integer in `[0, num_classes)` for each row; names the file, the array and the first label.
    """
    x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(
            f"{path}: y_{split} is {y.dtype} {y.shape}; it must be one integer per row: {_as_integers(arrays, split)}"
        )
    num_rows = len(x) if x.ndim else 0
    if num_rows != len(y):
        raise DataError(f"{path}: x_{split} has {num_rows} rows, y_{split} {len(y)}; they must be equal")
    outside = np.flatnonzero((y < 0) | (y >= num_classes))
    if len(outside):
        i = outside[0]
        raise DataError(
            f"{path}: y_{split}[{i}] is {y[i]}; labels are indices of classes and must lie in 0 to {num_classes - 1} "
            f"({len(outside)} labels lie outside)"
        )
    return y.astype(np.int64)


def names_of(array: Array) -> tuple[str, ...]:
    """Names of a file; those in bytes, as some pickled data sets bring them, are taken for UTF-8."""
    names = array.reshape(-1)
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "surrogateescape")
    return tuple(str(name) for name in names)


def naming_of(arrays: Mapping[str, Array], path: str | Path) -> Naming | None:
    """What the rows of `x_train` are called, by `NAMES_TRAIN`; None if a file does not say.

    Raises:
        DataError: it holds no text, or not one for each row.
    """
    if NAMES_TRAIN not in arrays:
        return None
    found, rows = arrays[NAMES_TRAIN], arrays["x_train"].shape[:1]
    if found.dtype.kind not in "US" or found.shape != rows:
        raise DataError(
            f"{path}: {NAMES_TRAIN} is {found.dtype} {found.shape}; it must be a text for each row of x_train, "
            f"{rows}: numpy.array(NAMES, str)"
        )
    return lambda ids: names_of(found[ids])


def _as_integers(arrays: Mapping[str, Array], split: str) -> str:
    """How labels of another kind become indices of classes."""
    name = f"y_{split}"
    y = arrays[name]
    if y.dtype.kind in "US" and (split != "train" or "class_names" in arrays):
        # numpy.unique numbers the labels that there are, by the alphabet: others than the classes have already.
        how = f"[list(class_names).index(label) for label in {name}]"
        return f"{how}, with the classes in the order that the training rows have"
    if y.dtype.kind in "US":
        return f"class_names, {name} = numpy.unique({name}, return_inverse=True)"
    if y.ndim == 2 and y.shape[1] > 1:
        return f"{name}.argmax(axis=1), if each row marks its class"
    return (
        f"{name}.reshape(-1)"
        if np.issubdtype(y.dtype, np.integer)
        else f"{name}.astype(int), if it holds whole numbers"
    )
