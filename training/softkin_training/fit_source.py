"""What `fit` is given: rows, and what the file says of them, from an .npz or a table. Needs no torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, InvalidInputError, listed
from softkin_training.data_config import DataConfig
from softkin_training.fit_rows import ONE_CLASS, axes_of, checked_rows, class_names, column_names, read_test_rows
from softkin_training.image_reader import ImageReader
from softkin_training.npz import NAMES_TRAIN, naming_of, read_npz
from softkin_training.row_contents import digests64, refuse_repeated, refuse_used
from softkin_training.rows import Naming, Rows
from softkin_training.table_rows import KINDS, TableRows, is_table
from softkin_training.tables import has_no_name, otherwise_divided, what_there_is

Array = NDArray[Any]
TABLE = "table"
"""Key of what `fit` keeps in the provenance: which columns of a table hold labels and names."""
LABELS = str(DataConfig.model_fields["label_column"].default)


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """How a table is read; of no effect on an .npz."""

    inputs: tuple[str, ...] = ()
    """What a row is made of, in the order of the model's inputs; empty: all others, in the order of the file."""
    label: str = ""
    """The column of labels; empty: `LABELS`, where there is one."""
    name: str = ""
    """The column that names rows; empty: none does."""


ALL_COLUMNS = TableColumns()


@dataclass(frozen=True, kw_only=True)
class FitSource:
    """Training rows for `fit`."""

    path: str | Path
    arrays: dict[str, Array]
    """`x_train` `[n, ...]`, checked, and `y_train` as the file has it, where it has labels."""
    class_names: tuple[str, ...]
    """Empty where the file does not say."""
    input_columns: tuple[str, ...]
    """Of a table: what a row is made of, in order; empty where that is not known."""
    naming: Naming | None
    """What rows are called, where the file says so."""
    columns: TableColumns
    """How tables are read, those of calibration rows too."""

    @property
    def said(self) -> dict[str, Any]:
        """What a bundle keeps of it, to read new tables by."""
        if not is_table(Path(self.path)):
            return {}
        return {TABLE: {"label_column": self.columns.label, "name_column": self.columns.name}}

    @property
    def x(self) -> Array:
        """`[n, ...]` the rows."""
        return self.arrays["x_train"]

    def read_test_rows(self, path: str | Path, classes: tuple[str, ...]) -> tuple[Array, NDArray[np.int64]]:
        """Rows of another file, `[m, ...]`, and their labels `[m]`: `x_test`, `y_test`, or a table with these columns.

        Raises:
            DataError: unreadable, or rows or labels are unfit.
        """
        if not is_table(Path(path)):
            return read_test_rows(path, classes)
        table = TableRows(Path(path), self.columns.label or LABELS)
        if not self.input_columns and len({*table.column_names} - {LABELS}) > 1:
            raise DataError(
                f"{path}: has the columns {listed(table.column_names)}, and {self.path} does not say which of them a "
                "row is made of, in which order; add an array column_names to that, or give an .npz here"
            )
        x = checked_rows(table.inputs(self.input_columns, ImageReader("RGB", []), self.x.dtype.name), "the table", path)
        if classes == (ONE_CLASS,):
            return x, np.zeros(len(x), np.int64)
        y = table.labels(classes)
        if y is None:
            raise DataError(f"{path}: has no column {self.columns.label or LABELS!r}, whose labels calibrate; add it")
        return x, y


def read_fit_source(path: str | Path, columns: TableColumns, *, labels_required: bool, dtype: str | None) -> FitSource:
    """Read training rows.

    Args:
        path: an .npz with `x_train`, `y_train` and what else `fit` takes; or a table, .csv or .parquet.
        columns: of a table.
        labels_required: whether there must be labels.
        dtype: what the numbers of a table become; None: float64 where they are whole, else what they are.

    Raises:
        InvalidInputError: a column that was asked for is none of the table's, or columns are asked for of an .npz.
        DataError: unreadable, rows are unfit, or labels are missing.
    """
    if is_table(Path(path)):
        return _of_table(Path(path), columns, labels_required, dtype)
    for option, given in (("columns", columns.inputs), ("label_column", columns.label), ("name_column", columns.name)):
        if given:
            raise InvalidInputError(option, f"is for tables (.csv, .parquet), and {path} is none; leave it out")
    keys = ("x_train", "y_train") if labels_required else ("x_train",)
    arrays = read_npz(path, keys, optional=("y_train", "class_names", "column_names", NAMES_TRAIN))
    checked_rows(arrays["x_train"], "x_train", path)
    return FitSource(
        path=path,
        arrays=arrays,
        class_names=class_names(arrays),
        input_columns=column_names(arrays, path),
        naming=naming_of(arrays, path),
        columns=columns,
    )


def read_calibration(path: str | Path, rows: Rows, classes: tuple[str, ...], source: FitSource) -> Rows:
    """Calibration rows from a file of their own, see `FitSource.read_test_rows`; ids go on after those of `rows`.

    Args:
        path: of the file.
        rows: the training rows, which these must be like.
        classes: names of the classes.
        source: where `rows` come from.

    Raises:
        DataError: unreadable, of another dtype or shape, labels out of range, not finite, repeated, or in `rows` too.
    """
    x, y = source.read_test_rows(path, classes)
    name = str(path) if is_table(Path(path)) else f"{path}: x_test"
    trained = str(source.path) if is_table(Path(source.path)) else f"x_train of {source.path}"
    if x.dtype != rows.dtype or x.shape[1:] != rows.row_shape:
        raise DataError(
            f"{name} is {x.dtype} {axes_of(x)}, {trained} is {rows.dtype} {axes_of(rows.x)}; prepare both in the same "
            "way"
        )
    there = Rows(x, y, np.arange(len(x)))  # the caller counts in the file
    refuse_used(there, digests64(rows), trained, name)
    refuse_repeated(there, name)
    return Rows(x, y, len(rows) + np.arange(len(x)))


def _of_table(path: Path, columns: TableColumns, labels_required: bool, dtype: str | None) -> FitSource:
    table = TableRows(path, columns.label or LABELS)
    there, kind = table.column_names, KINDS[path.suffix.lower()]
    label = columns.label or (LABELS if LABELS in there or labels_required else "")
    asked = [("columns", name) for name in columns.inputs]
    asked += [(option, name) for option, name in (("label_column", label), ("name_column", columns.name)) if name]
    for option, name in asked:
        if name not in there:
            raise InvalidInputError(option, f"{path} has no column {name!r}; {what_there_is(there, kind)}")
    if label in columns.inputs:
        raise InvalidInputError("columns", f"got {label!r}, which holds the labels; leave it out")
    inputs = columns.inputs or tuple(c for c in there if c not in (label, columns.name))
    if kind == "csv" and sum(not has_no_name(c) for c in there) == 1 and (divided := otherwise_divided(there)):
        raise DataError(f"{path}: {divided}")
    if not columns.inputs and (unnamed := [c for c in inputs if has_no_name(c)]):
        typed = ",".join(c.replace(",", r"\,") for c in inputs if c not in unnamed)
        raise InvalidInputError(
            "columns",
            f"{path} has a column {unnamed[0]!r}, row numbers as pandas writes them or a column without a name; name "
            f"the model's inputs, in its order: --columns {shlex.quote(typed)}",
        )
    if not inputs:
        raise DataError(f"{path}: has no column but {listed(there)}; add those of the inputs")
    arrays: dict[str, Array] = {
        "x_train": checked_rows(table.inputs(inputs, ImageReader("RGB", []), dtype), "the table", path)
    }
    names: tuple[str, ...] = ()
    if label:
        arrays["y_train"], names = table.label_codes()
    return FitSource(
        path=path,
        arrays=arrays,
        class_names=names,
        input_columns=inputs,
        naming=table.naming(columns.name) if columns.name else None,
        columns=columns,
    )
