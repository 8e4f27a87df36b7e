"""Rows for a run: load a source, check it, split it into disjoint parts.

    train         fits the weights, and fills the bank; may be larger than memory
    calibration   sets the p-values; disjoint from train, else they would look too familiar
    test          untouched rows of the known classes
    outliers      named sets of rows that belong to no known class; never used for fitting

No row stands in two parts. Errors come before training starts, and say what to change.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, RecipeError, is_unicode, listed
from softkin.manifest import INPUT_DTYPES
from softkin_training.config import Recipe
from softkin_training.data_config import DataConfig
from softkin_training.digits import made_outliers, read_digits
from softkin_training.image_reader import ImageReader
from softkin_training.npz import read_npz
from softkin_training.rows import Naming, Rows
from softkin_training.sources import Source, read_source
from softkin_training.split import first_of_each
from softkin_training.table_rows import TableRows, is_table

Array = NDArray[Any]

UNKNOWN_DIGITS, HELD_OUT = HELD_OUT_SETS = ("unknown digits", "held-out classes")
"""Outlier sets made of classes that a recipe leaves out: near outliers."""
SHUFFLED = "shuffled features"
"""Outlier set made where there is no other: each number of a test row stems from another test row."""
MOST_HELD_OUT = 10_000
"""Rows of held-out classes that are kept, evenly spread, where they must be taken from the training rows."""


@dataclass(frozen=True)
class Dataset:
    """Everything a run reads, checked."""

    train: Rows
    calibration: Rows
    test: Rows
    outliers: dict[str, Array]
    """Name -> `[m, ...]` rows shaped like the others."""
    class_names: tuple[str, ...]
    duplicates_dropped: int = 0
    """Training rows left out because the same content stands elsewhere in train, calibration or test."""
    input_columns: tuple[str, ...] = ()
    """Of a table: the columns that its rows are made of, in their order."""
    naming: Naming | None = None
    """What training rows are called, where the source says so."""


def load_dataset(recipe: Recipe) -> Dataset:
    """Load, check and split the data of a recipe.

    The split is a seeded plain permutation: unlike stratifying, it leaves calibration and test rows exchangeable.

    Raises:
        RecipeError: data.path is empty, a class or outlier name of the recipe does not fit the source, or an optional
            package is missing.
        DataError: a file cannot be read, or its rows are unfit; the message names file, array and remedy.
    """
    rng, data = np.random.default_rng(recipe.seed), recipe.data
    if data.source == "digits":
        dataset = _split_source(read_digits(), data, rng, UNKNOWN_DIGITS)
        dataset.outliers.update(made_outliers(dataset.test.x, rng))
    else:
        dataset = _split_source(read_source(data), data, rng, HELD_OUT)
    for name, path in data.outliers.items():
        if name in dataset.outliers:
            raise RecipeError(f"data.outliers.{name}: this source makes a set of that name itself; choose another name")
        try:
            dataset.outliers[name] = _read_outliers(path, data, dataset)
        except DataError as e:
            raise DataError(f"data.outliers.{name}: {e}") from None
    if not dataset.outliers:
        dataset.outliers[SHUFFLED] = _shuffled(dataset.test.x, rng)
    _check(dataset, data.path or data.source)
    return dataset


def _split_source(source: Source, data: DataConfig, rng: np.random.Generator, held_out: str) -> Dataset:
    name = data.path or data.source
    if len(source.class_names) < 2:
        found = listed(source.class_names) or "none"
        raise DataError(f"{name}: of classes it has {found}; a classifier needs at least 2")
    if odd := [c for c in source.class_names if not is_unicode(c)]:  # a bundle would refuse it after the training
        raise DataError(f"{name}: has the class {odd[0]!r}, which UTF-8 cannot spell; rename it")
    if unnamed := [i for i, c in enumerate(source.class_names) if not c.strip()]:
        raise DataError(f"{name}: class {unnamed[0]} has the name {source.class_names[unnamed[0]]!r}; give it another")
    if len(set(source.class_names)) < len(source.class_names):
        twice = next(c for i, c in enumerate(source.class_names) if c in source.class_names[:i])
        raise DataError(f"{name}: has the class {twice!r} twice; rename one")
    composed: dict[str, str] = {}
    for c in source.class_names:
        if (other := composed.setdefault(unicodedata.normalize("NFC", c), c)) != c:
            raise DataError(
                f"{name}: has the classes {other!a} and {c!a}, one word in two spellings of Unicode; rename one"
            )
    chosen = data.known_classes or range(len(source.class_names))
    # Before the split moves them: the message names a row that can be found.
    # Outliers are taken from the source's test rows, so training rows of classes left out are never used.
    used = None if source.test is None else np.isin(source.train.y, chosen)
    _refuse_not_finite(source.train, f"{name}, train", used)
    _refuse_beyond_float32(source.train, f"{name}, train", used)
    if source.test is not None:
        _refuse_not_finite(source.test, f"{name}, test")
    everything, unknown = _known(source.train, chosen, source.class_names, name)
    sizes = {"data.calibration_rows": data.calibration_rows}
    if source.test is None:
        rows = first_of_each(everything)
        test, calibration, train = _split(rows, {"data.test_rows": data.test_rows, **sizes}, rng)
    else:
        test, unknown = _known(source.test, chosen, source.class_names, name)
        rows = first_of_each(everything, test)
        calibration, train = _split(rows, sizes, rng, " beside the test rows that the source brings")
    outliers: dict[str, Array] = {}
    if len(unknown):
        step = 1 if source.test is not None else -(-len(unknown) // MOST_HELD_OUT)
        outliers[held_out] = unknown.read(slice(None, None, step))
    test, calibration = (Rows(part.x, part.y, part.ids) for part in (test, calibration))
    names = tuple(source.class_names[c] for c in chosen)
    dropped = len(everything) - len(rows)
    return Dataset(train, calibration, test, outliers, names, dropped, source.input_columns, source.naming)


def _known(rows: Rows, chosen: Sequence[int], names: Sequence[str], source: str) -> tuple[Rows, Rows]:
    """The rows of chosen classes, relabelled 0..K-1 in their order, and the others."""
    if outside := [c for c in chosen if c >= len(names)]:
        allowed = f"{source} has classes 0 to {len(names) - 1}"
        raise RecipeError(f"data.known_classes is {list(chosen)}, with {outside[0]} in it; {allowed}")
    new_label = np.full(len(names), -1, dtype=np.int64)
    new_label[list(chosen)] = np.arange(len(chosen))
    labels = new_label[rows.y]
    known = np.flatnonzero(labels >= 0)
    return rows.take(known).labelled(labels[known]), rows.take(np.flatnonzero(labels < 0))


def _split(rows: Rows, sizes: dict[str, int], rng: np.random.Generator, beside: str = "") -> list[Rows]:
    """Parts of the given sizes, then the rest; `beside` what else there is, for the message."""
    wanted = sum(sizes.values())
    if len(rows) <= wanted:
        asked = " + ".join(f"{k} = {n}" for k, n in sizes.items())
        raise DataError(
            f"{asked} need {wanted} rows, and more to train on; there are {len(rows)} distinct ones{beside}; lower "
            f"{' or '.join(sizes)}"
        )
    order = rng.permutation(len(rows))
    return [rows.take(part) for part in np.split(order, np.cumsum(list(sizes.values())))]


def _read_outliers(path: str, data: DataConfig, dataset: Dataset) -> Array:
    if os.path.isdir(path):
        from softkin_training.image_folder import read_unlabelled

        return read_unlabelled(Path(path), data)
    if is_table(Path(path)):
        reader = ImageReader(data.image_mode, data.image_size)
        table = TableRows(Path(path), data.label_column)
        return table.inputs(dataset.input_columns, reader, dataset.train.dtype.name)
    return read_npz(path, ("x_test",))["x_test"]


def _shuffled(x: Array, rng: np.random.Generator) -> Array:
    """Rows whose every number alone is like an inlier's, and which together are like no inlier's."""
    return rng.permuted(x, axis=0)


def _check(dataset: Dataset, source: str) -> None:
    train = dataset.train
    expected = f"{train.dtype} {train.row_shape}"
    parts: dict[str, Rows | Array] = {"train": train, "calibration": dataset.calibration.x, "test": dataset.test.x}
    for what, x in {**parts, **{f"outliers {k!r}": v for k, v in dataset.outliers.items()}}.items():
        dtype, shape = (x.dtype, (len(x), *x.row_shape)) if isinstance(x, Rows) else (x.dtype, x.shape)
        if shape[:1] == (0,):
            raise DataError(f"{source}: {what} has no rows")
        if dtype.name not in INPUT_DTYPES or not 2 <= len(shape) <= 4:
            allowed = f"one of {', '.join(INPUT_DTYPES)} with rows of 1 to 3 axes"
            raise DataError(f"{source}: {what} is {dtype} {shape}; it must be {allowed}")
        if (got := f"{dtype} {shape[1:]}") != expected:
            raise DataError(f"{source}: rows of {what} are {got}, those of train {expected}; convert them")
        if not isinstance(x, Rows):
            _refuse_not_finite(x, f"{source}: {what}")
    counts = np.bincount(train.y, minlength=len(dataset.class_names))
    if counts.min() < 2:
        few = [f"{n} of {name!r}" for name, n in zip(dataset.class_names, counts, strict=True) if n < 2]
        raise DataError(
            f"{source}: after the split train holds {', '.join(few)}; each class needs at least 2 rows: "
            "add rows, lower data.calibration_rows, or leave them out by data.known_classes"
        )


def _refuse_not_finite(x: Rows | Array, what: str, used: NDArray[np.bool_] | None = None) -> None:
    """Check all rows, or only those where `used` `[n]` is true; the message counts in all of them."""
    if x.dtype.kind != "f" or not len(x):
        return
    bad = _rows_where(lambda block: ~np.isfinite(block), x, used)
    if len(bad):
        raise DataError(f"{what} has {len(bad)} rows with NaN or infinity, first row {bad[0]}; remove them")


def _refuse_beyond_float32(x: Rows, what: str, used: NDArray[np.bool_] | None) -> None:
    """A network computes in float32: such a number is infinite there, and so is the mean of all rows."""
    if x.dtype != np.float64 or not len(x):
        return
    most = np.finfo(np.float32).max
    bad = _rows_where(lambda block: np.abs(block) > most, x, used)
    if len(bad):
        raise DataError(
            f"{what} has {len(bad)} rows with numbers beyond {most:.2g}, the largest of float32, in which networks "
            f"compute, first row {bad[0]}; remove them, or scale the numbers"
        )


def _rows_where(
    condition: Callable[[Array], NDArray[np.bool_]], x: Rows | Array, used: NDArray[np.bool_] | None
) -> NDArray[np.intp]:
    """Indices of the rows in which the condition is true for some number."""
    blocks = x.blocks() if isinstance(x, Rows) else [x]
    found = np.concatenate([condition(block).reshape(len(block), -1).any(axis=1) for block in blocks])
    return np.flatnonzero(found if used is None else found & used)
