"""What a source of data gives a run, before it is split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softkin.errors import RecipeError
from softkin_training.data_config import DataConfig
from softkin_training.npz import NAMES_TRAIN, checked_labels, names_of, naming_of, read_npz
from softkin_training.rows import Naming, Rows


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled rows; ids are unique over train and test."""

    train: Rows
    test: Rows | None
    """None: the source has no test split of its own, so `data.test_rows` of its rows are set aside."""
    class_names: tuple[str, ...]
    """What labels index."""
    input_columns: tuple[str, ...] = ()
    """Of a table: the columns that its rows are made of, in their order."""
    naming: Naming | None = None
    """What training rows are called, where the source says so."""


def read_source(data: DataConfig) -> Source:
    """Read the source that a recipe names, but for the digits that need no file.

    Raises:
        RecipeError: data.path is empty, or the recipe does not fit what the source holds.
        DataError: something cannot be read or is unfit; the message names it, and the remedy.
    """
    if not data.path:
        wanted = {
            "npz": "the npz file: --set data.path=FILE.npz",
            "folder": "the folder of images: --set data.path=FOLDER",
            "hub": "the data set: --set data.path=OWNER/NAME",
        }.get(data.source, f"the {data.source} file: --set data.path=FILE")
        raise RecipeError(f"data.path is empty; name {wanted}")
    if data.source == "npz":
        return _read_npz(data.path)
    if data.source == "folder":
        from softkin_training.image_folder import read_folder

        return read_folder(data)
    from softkin_training.tables import read_table

    return read_table(data)


def _read_npz(path: str) -> Source:
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test", "class_names"), optional=(NAMES_TRAIN,))
    names = names_of(arrays["class_names"])
    y_train, y_test = (checked_labels(arrays, split, len(names), path) for split in ("train", "test"))
    return Source(
        train=Rows(arrays["x_train"], y_train, np.arange(len(y_train))),
        test=Rows(arrays["x_test"], y_test, len(y_train) + np.arange(len(y_test))),
        class_names=names,
        naming=naming_of(arrays, path),
    )
