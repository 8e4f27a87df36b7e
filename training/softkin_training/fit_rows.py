"""Rows from users' files: read, checked, and compared with the rows of other files. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, is_unicode
from softkin.manifest import INPUT_DTYPES
from softkin_training.npz import checked_labels, names_of, read_npz
from softkin_training.rows import Rows

Array = NDArray[Any]
UNEVEN = 30.0
"""A column whose deviation is smaller than another's by more than this factor hardly counts in distances."""
ROUNDINGS = 4.0
"""A column is taken for constant if its deviation is at most so many roundings of its largest number."""
COLUMNS_TOGETHER = 8
"""Columns that are copied at a time."""

ONE_CLASS = "all"
"""The class of vectors without labels."""


def read_test_rows(path: str | Path, classes: tuple[str, ...]) -> tuple[Array, NDArray[np.int64]]:
    """`x_test` and `y_test` of a file; no labels are needed, nor read, where the only class is `ONE_CLASS`.

    Args:
        path: npz; its `class_names`, where it has any, must be in the order of `classes`.
        classes: names of the classes.

    Raises:
        DataError: unreadable, rows that are none or not finite, or labels that are none of `classes` or in another
            order.
    """
    if classes == (ONE_CLASS,):
        x = checked_rows(read_npz(path, ("x_test",))["x_test"], "x_test", path)
        return x, np.zeros(len(x), np.int64)
    arrays = read_npz(path, ("x_test", "y_test"), optional=("class_names",))
    return checked_rows(arrays["x_test"], "x_test", path), labels_of(arrays, classes, path)


def labels_of(arrays: dict[str, Array], classes: tuple[str, ...], path: str | Path) -> NDArray[np.int64]:
    """`[n]` labels `y_test` of a file.

    Raises:
        DataError: one is none of `classes`, or `class_names` says that they count a class otherwise, as numpy.unique
            does in a file that lacks some of them.
    """
    for i, name in enumerate(class_names(arrays)):
        if name in classes and classes[i : i + 1] != (name,):
            raise DataError(
                f"{path}: class_names has {name!r} at {i}, the classes of the training rows at {classes.index(name)}; "
                "number y_test in their order, and give all of their class_names or none"
            )
    return checked_labels(arrays, "test", len(classes), path)


def axes_of(x: Array) -> str:
    """The shape of rows for messages: `[rows, 28, 28]`."""
    return "[" + ", ".join(["rows", *map(str, x.shape[1:])]) + "]"


def checked_rows(x: Array, key: str, path: str | Path) -> Array:
    """`[n >= 1, ...]` rows that a detector can take.

    Raises:
        DataError: of a dtype or shape that no detector takes, or not finite; names file, array and row.
    """
    if x.dtype.name not in INPUT_DTYPES:
        remedy = "give the vectors that an encoder makes of text" if x.dtype.kind in "SU" else "convert it"
        raise DataError(f"{path}: {key} is {x.dtype}; it must be one of {', '.join(INPUT_DTYPES)}: {remedy}")
    if x.ndim < 2 or not x.size:
        remedy = f": {key}.reshape(1, -1) is one row, {key}.reshape(-1, 1) a row a number" if x.ndim == 1 else ""
        raise DataError(
            f"{path}: {key} has shape {list(x.shape)}; it must be [rows, numbers, ...], with a row at least{remedy}"
        )
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
    if len(bad):
        raise DataError(
            f"{path}: {key} has {len(bad)} rows with NaN or infinity, the first is row {bad[0]}; remove them, or fill "
            "missing values in"
        )
    return x


def uneven_deviations(x: Array) -> tuple[float, float] | None:
    """Deviations of the column that varies least and of that which varies most, if these are `UNEVEN` times apart.

    Of columns `[n, columns]` alone, for images and sequences measure one thing in all places; of those that vary.
    """
    found = column_deviations(x) if x.ndim == 2 else np.zeros(0)
    varying = found[found > 0]
    uneven = len(varying) > 0 and varying.max() > UNEVEN * varying.min()
    return (float(varying.min()), float(varying.max())) if uneven else None


def column_deviations(x: Array) -> NDArray[np.float64]:
    """`[D]` standard deviations of columns `[n, D]`; 0 of those that vary by rounding alone."""
    return np.array([_moments(column, x.dtype)[1] for column in _columns(x)])


def column_means(x: Array) -> NDArray[np.float64]:
    """`[D]` means of columns `[n, D]`."""
    return np.array([_moments(column, x.dtype)[0] for column in _columns(x)])


def _columns(x: Array) -> Iterator[Array]:
    """Columns whose numbers stand side by side, for one that is strewn over a large array is slow to read."""
    for start in range(0, x.shape[1], COLUMNS_TOGETHER):
        yield from np.ascontiguousarray(x[:, start : start + COLUMNS_TOGETHER].T)


def _moments(column: Array, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Mean and standard deviation, also of numbers whose squares exceed float64."""
    values = column.astype(np.float64)
    largest = float(np.abs(values).max())
    if not largest:
        return 0.0, 0.0
    values /= largest
    rounding = ROUNDINGS * np.finfo(dtype).eps if dtype.kind == "f" else 0.0
    deviation = float(values.std())
    return float(values.mean()) * largest, 0.0 if deviation <= rounding else deviation * largest


def class_names(arrays: dict[str, Array]) -> tuple[str, ...]:
    """The class names of a file, empty if it has none.

    Raises:
        DataError: a name is not of Unicode.
    """
    return _of_unicode(names_of(arrays.get("class_names", np.array([]))), "class_names")


def column_names(arrays: dict[str, Array], data: str | Path) -> tuple[str, ...]:
    """What the columns of `x_train` are called, by `column_names`; empty if a file does not say.

    Raises:
        DataError: they are not one name for each column, a name comes twice, or is not of Unicode.
    """
    if "column_names" not in arrays:
        return ()
    names, x = names_of(arrays["column_names"]), arrays["x_train"]
    if x.ndim != 2 or len(names) != x.shape[1]:
        raise DataError(
            f"{data}: column_names has {len(names)} names for rows {axes_of(x)}; there must be one for each column"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{data}: column_names has {twice[0]!r} twice; every column needs a name of its own")
    return _of_unicode(names, f"{data}: column_names")


def _of_unicode(names: tuple[str, ...], what: str) -> tuple[str, ...]:
    if odd := [n for n in names if not is_unicode(n)]:
        raise DataError(f"{what} has {odd[0]!r}, which UTF-8 cannot spell; rename it")
    return names


def refuse_empty_classes(bank_rows: Rows, classes: tuple[str, ...], data: str | Path, remedies: Sequence[str]) -> None:
    """Refuse bank rows that lack a class: no row could be like it.

    Args:
        bank_rows: all of the bank.
        classes: names of the classes that there must be.
        data: file to name.
        remedies: what may help.

    Raises:
        DataError: says how many classes are concerned and names the first.
    """
    counts = np.bincount(bank_rows.y, minlength=len(classes))
    if empty := [classes[i] for i in np.flatnonzero(counts == 0)]:
        raise DataError(
            f"{data}: x_train has no row for the bank of {len(empty)} of {len(classes)} classes, the first is "
            f"{empty[0]!r}; every class needs at least one: {', '.join(remedies[:-1])}, or {remedies[-1]}"
        )
