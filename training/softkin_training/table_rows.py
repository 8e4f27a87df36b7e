"""Rows of one table in memory, as a detector takes them: columns by name, numbers in its dtype. Needs no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, InvalidInputError, listed
from softkin_training.data_config import DataConfig
from softkin_training.image_reader import ImageReader
from softkin_training.input_columns import InputColumns
from softkin_training.name_column import NameColumn
from softkin_training.row_cache import optional_package
from softkin_training.tables import label_codes, label_values, load_tables, what_there_is

Array = NDArray[Any]
KINDS: dict[str, Literal["csv", "parquet"]] = {".csv": "csv", ".parquet": "parquet"}


def is_table(path: Path) -> bool:
    """Whether a file is called like a table."""
    return path.suffix.lower() in KINDS


class TableRows:
    """An open table.

    Args:
        path: of the file, or files by a pattern, sorted by name.
        label_column: which column holds labels, if there is one of that name.

    Raises:
        RecipeError: the extra `datasets` is missing.
        DataError: no such file, or it cannot be read as its name says.
    """

    def __init__(self, path: Path, label_column: str) -> None:
        library = optional_package("datasets", "datasets", str(path))
        if not path.is_file() and not any(map(os.path.isfile, glob.glob(str(path), recursive=True))):
            raise DataError(f"{path}: no such file")
        kind = KINDS[path.suffix.lower()]
        self._path, self._label_column = path, label_column
        self._settings = DataConfig(
            source=kind, path=str(path), label_column=label_column, calibration_rows=1, test_rows=1
        )
        self._table = load_tables(library, self._settings)["train"]

    @property
    def column_names(self) -> list[str]:
        """Of all columns."""
        found: list[str] = self._table.column_names
        return found

    @property
    def _there(self) -> str:
        return what_there_is(self.column_names, self._settings.source)

    def inputs(self, columns: Sequence[str], reader: ImageReader, dtype: str | None) -> Array:
        """`[n, ...]` inputs.

        Args:
            columns: names in their order. Empty: the only one beside the labels.
            reader: of images.
            dtype: what numbers become; none may change by it but by rounding to fewer digits. None: float64 where they
                are whole, for a file of whole numbers alone does not tell that others may come; else what they are.

        Raises:
            InvalidInputError: a column is named twice.
            DataError: a column is missing or holds something else, or a number is none of `dtype`.
        """
        table = self._table
        columns = list(columns)
        if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
            raise InvalidInputError("columns", f"names {twice[0]!r} twice; must name each column once")
        if not columns:
            columns = [c for c in table.column_names if c != self._label_column]
            if len(columns) > 1:
                raise DataError(
                    f"{self._path}: has the columns {listed(columns)}, and nothing says which of them a row is made "
                    "of, in which order; `softkin-train rows --columns` makes an .npz of those that it is given"
                )
        if missing := [c for c in columns if c not in table.column_names]:
            raise DataError(
                f"{self._path}: has no column {missing[0]!r}; a row is made of {listed(columns)}; {self._there}"
            )
        inputs = InputColumns(table.features, columns, reader, str(self._path), "--columns")
        inputs.refuse_stray_text(table.data)
        x = inputs.read(table.data, 0)
        if dtype is None:
            dtype = x.dtype.name if x.dtype.kind == "f" else "float64"
        return _as_dtype(x, dtype, columns, self._path)

    def texts(self, column: str) -> list[str]:
        """What a column holds, as text; empty where it holds nothing.

        Raises:
            DataError: there is no such column, or it holds bytes or lists.
        """
        if column not in self.column_names:
            raise DataError(f"{self._path}: has no column {column!r}; {self._there}")
        return self.naming(column).all()

    def naming(self, column: str) -> NameColumn:
        """What rows are called by a column of the table.

        Raises:
            DataError: it holds bytes or lists.
        """
        return NameColumn(self._table.data.column(column), f"{self._path}: column {column!r}")

    def label_codes(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """`[n]` labels of a table that has some, and what they index: their values in order, as text.

        Raises:
            DataError: they are of a kind that no labels have, or one is missing.
        """
        values, names = label_values(self._table, self._settings)
        return label_codes(self._table, values, self._label_column, str(self._path)), tuple(names)

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64] | None:
        """`[n]` indices of `classes`; None where there is no column of labels.

        Raises:
            DataError: a label is none of the classes, or the name of two.
        """
        if self._label_column not in self.column_names:
            return None
        codes, names = self.label_codes()
        for code, name in enumerate(names):
            if classes.count(name) != 1 and (codes == code).any():
                twice = f"which is the name of {classes.count(name)} classes" if name in classes else "no class"
                raise DataError(
                    f"{self._path}: row {int(np.flatnonzero(codes == code)[0])} has the label {name!r}, {twice}; the "
                    f"detector knows {listed(classes)}"
                )
        known = [classes.index(name) if name in classes else -1 for name in names]
        return np.array(known, np.int64)[codes]


def _as_dtype(x: Array, dtype: str, columns: Sequence[str], path: Path) -> Array:
    """Numbers in the dtype of the training rows: a file of whole numbers alone does not tell that others may come."""
    if x.dtype == dtype:
        return x
    with np.errstate(invalid="ignore", over="ignore"):
        found = x.astype(dtype)
    fractions = found.dtype.kind == "f"
    odd = np.argwhere(np.isinf(found) & ~np.isinf(x) if fractions else found != x)
    if len(odd):
        row, where = int(odd[0, 0]), tuple(odd[0])
        column = columns[where[1]] if x.ndim == 2 and x.shape[1] == len(columns) else columns[0]
        most = f", which ends at {np.finfo(dtype).max:.3g}: mend it, or drop the row" if fractions else ""
        raise DataError(
            f"{path}: column {column!r} has {x[where]} in row {row}, and the detector takes {dtype}"
            + (most or ", as the rows that it was trained on were")
        )
    return found
