"""New rows for a finished bundle: an npz file, a table, or a folder of images. Needs no torch."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.arguments import as_inputs
from softkin.errors import DataError, InvalidInputError
from softkin.manifest import INPUT_COLUMNS, Manifest
from softkin.score_display import read_names as names_of_rows
from softkin_training.fit_rows import ONE_CLASS, checked_rows, labels_of
from softkin_training.fit_source import LABELS, TABLE
from softkin_training.image_folder import SUFFIXES, images_below
from softkin_training.image_reader import ImageReader, Mode
from softkin_training.npz import read_npz
from softkin_training.table_rows import TableRows, is_table

Array = NDArray[Any]


def read_inputs(path: Path, manifest: Manifest) -> Array:
    """`[n, ...]` `x_test` of an npz file, or rows of a table or all images below a folder as the detector takes them.

    Args:
        path: file or folder.
        manifest: of the bundle; images are resized where its recipe resized the training images, and of a table the
            columns are taken that its training rows were made of.

    Raises:
        DataError: unreadable, no images, or rows that the detector does not take.
    """
    if os.path.isdir(path):
        return read_images(path, images_below(path), manifest)
    if is_table(path):
        return read_columns(open_table(path, manifest), manifest)
    return read_npz(path, ("x_test",))["x_test"]


def read_named_inputs(path: Path, manifest: Manifest) -> tuple[Array, list[str] | None]:
    """`read_inputs` of a file, and what its rows are called, where it says so.

    Raises:
        DataError: as `read_inputs`.
    """
    if is_table(path):
        table = open_table(path, manifest)
        return read_columns(table, manifest), read_names(table, manifest)
    x = read_inputs(path, manifest)
    return x, None if os.path.isdir(path) else names_of_rows(str(path), len(x))


def as_taken(x: Array, manifest: Manifest, path: Path) -> Array:
    """Rows of a file, if the detector takes them.

    Raises:
        DataError: it does not; names the file.
    """
    try:
        return as_inputs(x, manifest.input_dtype, manifest.input_shape)
    except InvalidInputError as e:
        raise DataError(f"{path}: {e.message}") from None


def open_table(path: Path, manifest: Manifest) -> TableRows:
    """A table whose labels, if it has any, stand where those of the training rows stood.

    Raises:
        DataError: as `TableRows` does.
    """
    return TableRows(path, _data_of(manifest).get("label_column") or LABELS)


def read_columns(table: TableRows, manifest: Manifest, columns: Sequence[str] = ()) -> Array:
    """`[n, ...]` rows of a table as the detector takes them.

    Args:
        table: see `open_table`.
        manifest: of the bundle.
        columns: instead of those that the bundle names.

    Raises:
        DataError: as `TableRows.inputs` does.
    """
    columns = columns or manifest.provenance.get(INPUT_COLUMNS) or _data_of(manifest).get("input_columns", ())
    return table.inputs(columns, _image_reader(manifest), manifest.input_dtype)


def read_names(table: TableRows, manifest: Manifest, column: str | None = None) -> list[str] | None:
    """What rows of a table are called: by `column`, or by that which named the training rows, where the table has it.

    Raises:
        DataError: as `TableRows.texts` does.
    """
    usual = _data_of(manifest).get("name_column")
    if column is None and usual in table.column_names:
        column = usual
    return None if column is None else table.texts(column)


def read_labelled(path: Path, manifest: Manifest) -> tuple[Array, NDArray[np.int64] | None]:
    """The same with labels, where they are known.

    Those of an npz file are its `y_test`, of a table the column that labelled the training rows, of images the folders
    directly below `path`, where all are called like classes, in whichever spelling of Unicode. None where the detector
    knows a single class, whatever labels the file has.

    Raises:
        DataError: as `read_inputs` does, labels are none of the classes, or a folder is called like two classes.
    """
    classes = manifest.classes
    if os.path.isdir(path):
        images = images_below(path)
        x = read_images(path, images, manifest)
        return x, _labels_by_folder(path, images, classes)
    if is_table(path):
        table = open_table(path, manifest)
        return read_columns(table, manifest), None if classes == (ONE_CLASS,) else table.labels(classes)
    if classes == (ONE_CLASS,):
        return read_inputs(path, manifest), None
    arrays = read_npz(path, ("x_test",), optional=("y_test", "class_names"))
    return arrays["x_test"], labels_of(arrays, classes, path) if "y_test" in arrays else None


def read_calibrating(path: Path, manifest: Manifest) -> tuple[Array, NDArray[np.int64] | None]:
    """The same, checked: zeros for labels where the detector knows a single class, None where none are known.

    Raises:
        DataError: as `read_labelled` does, rows are none or not finite, or a folder labels some of its images only.
    """
    classes = manifest.classes
    x, y = read_labelled(path, manifest)
    if not os.path.isdir(path):
        x = checked_rows(x, "the table" if is_table(path) else "x_test", path)
        return x, np.zeros(len(x), np.int64) if classes == (ONE_CLASS,) else y
    if y is None and (
        some := sorted({name for name in _folders(path, images_below(path)) if name in _composed(classes)})
    ):
        raise DataError(
            f"{path}: {some[0]!r} is called like a class ({', '.join(classes)}), but not all images lie in such "
            "folders; calibration needs the class of every image or of none: put them there, or all beside each other"
        )
    return x, y


def why_unlabelled(path: Path, manifest: Manifest) -> str:
    """What to say of images in folders that label none of them; empty where they lie in none, or of a single class.

    Args:
        path: what `read_labelled` or `read_calibrating` found no labels for.
        manifest: of the bundle.
    """
    classes = manifest.classes
    if not os.path.isdir(path) or len(classes) == 1:
        return ""
    images = [image for image in images_below(path) if image.parent != path]
    odd = next((name for name in _folders(path, images) if name not in _composed(classes)), None)
    if odd is None:
        return ""
    return f"{path}: no labels, because the folder {odd!r} is not called like a class, as {classes[0]!r} is"


def _composed(classes: tuple[str, ...]) -> list[str]:
    return [unicodedata.normalize("NFC", c) for c in classes]


def _folders(path: Path, images: list[Path]) -> list[str]:
    """The folder directly below `path` that holds each image; the image's own name if there is none."""
    return [unicodedata.normalize("NFC", image.relative_to(path).parts[0]) for image in images]


def _labels_by_folder(path: Path, images: list[Path], classes: tuple[str, ...]) -> NDArray[np.int64] | None:
    composed = _composed(classes)
    names = _folders(path, images)
    if not set(names) <= set(composed):
        return None
    if shared := [name for name in names if composed.count(name) > 1]:
        raise DataError(
            f"{path}: the detector has {composed.count(shared[0])} classes called {shared[0]!r}, so a folder of that "
            "name does not tell which; give an .npz with x_test and y_test"
        )
    return np.array([composed.index(name) for name in names])


def read_images(folder: Path, images: list[Path], m: Manifest) -> Array:
    """`[n, ...]` images of a folder as the detector takes them.

    Raises:
        DataError: there are none, one cannot be read, or the detector takes no such images.
    """
    if not images:
        raise DataError(f"{folder}: holds no images; they must end in {', '.join(sorted(SUFFIXES))}")
    if m.input_dtype != "uint8" or len(m.input_shape) < 2 or m.input_shape[2:] not in ((), (3,)):
        takes = ", ".join(["rows", *map(str, m.input_shape)])
        raise DataError(
            f"{folder}: is a folder, whose images are read as uint8 [rows, height, width] or [rows, height, width, 3], "
            f"and this detector takes {m.input_dtype} [{takes}]; give an .npz with x_test"
        )
    height, width = m.input_shape[:2]
    found = []
    for path in images:
        image = _image_reader(m).read(path, str(path))
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path}: is {image.shape[0]} x {image.shape[1]} pixels, and this detector takes {height} x {width}, "
                "which its recipe did not resize to; resize it as whoever calls the detector would"
            )
        found.append(image)
    return np.stack(found)


def _data_of(m: Manifest) -> dict[str, Any]:
    """The section [data] of the recipe, or what `fit` keeps of a table; empty where the bundle comes from neither."""
    p = m.provenance
    found: dict[str, Any] = p.get("recipe", {}).get("data", {}) or p.get("fit", {}).get(TABLE, {})
    return found


def _image_reader(m: Manifest) -> ImageReader:
    """One that resizes where the recipe did."""
    mode: Mode = "L" if len(m.input_shape) == 2 else "RGB"
    return ImageReader(mode, list(m.input_shape[:2]) if _data_of(m).get("image_size") else [])
