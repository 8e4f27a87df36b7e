"""Images in folders, one per class: FOLDER/CLASS/..., or FOLDER/train/CLASS/... and FOLDER/test/CLASS/...

Any depth below the class, through links too; classes are sorted by name. What starts with a dot, file or folder, is
left out, and so is what does not end like an image.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError, RecipeError, listed
from softkin_training.data_config import DataConfig
from softkin_training.image_reader import ImageReader
from softkin_training.name_column import NameColumn
from softkin_training.row_cache import cached_rows, optional_package
from softkin_training.rows import Rows
from softkin_training.sources import Source
from softkin_training.stored_rows import rows_of

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"})
"""Names of folders that hold classes and are none, where there are no others."""
READ_AT_ONCE = 64


def read_folder(data: DataConfig) -> Source:
    """The images of `data.path`, decoded once into the cache.

    Raises:
        RecipeError: `data.test_rows` does not fit the folder, or the extra `datasets` is missing.
        DataError: a folder or image cannot be read, classes differ, or sizes are mixed.
    """
    optional_package("datasets", "datasets", "data.source = 'folder'")
    folder = Path(data.path)
    if not os.path.isdir(folder):  # of a path too long for any, or behind a folder that is closed, Path would raise
        raise DataError(f"{folder}: is no folder; data.path names one that holds a folder of images for each class")
    has_splits = os.path.isdir(folder / "train") and os.path.isdir(folder / "test")
    if has_splits and data.test_rows:
        raise RecipeError(f"data.test_rows is {data.test_rows}; must be 0: {folder} brings its own test folder")
    if not has_splits and not data.test_rows:
        raise RecipeError(
            f"data.test_rows is 0; must be at least 1: {folder} has no folders train and test, so rows must "
            "be set aside"
        )
    root = folder / "train" if has_splits else folder
    names = _class_names(root)
    reader = ImageReader(data.image_mode, data.image_size)
    train, paths = _rows(root, names, reader, first_id=0)
    test = None
    if has_splits:
        if extra := set(_class_names(folder / "test")) - set(names):
            raise DataError(
                f"{folder / 'test'}: has {listed(sorted(extra))}, which are not among the classes of train: "
                + listed(names)
                + _spelled_otherwise(extra, names)
            )
        test, _ = _rows(folder / "test", names, reader, first_id=len(train))
    naming = NameColumn.of(str(path.relative_to(folder)) for path in paths)
    return Source(train=train, test=test, class_names=tuple(names), naming=naming)


def read_unlabelled(folder: Path, data: DataConfig) -> NDArray[np.generic]:
    """`[m, ...]` all images below a folder, as `data` says, in memory.

    Raises:
        DataError: there are none, one cannot be read, or sizes are mixed.
    """
    reader = ImageReader(data.image_mode, data.image_size)
    images = [reader.read(path, str(path)) for path in images_below(folder)]
    if not images:
        raise DataError(f"{folder}: holds no images; they must end in {', '.join(sorted(SUFFIXES))}")
    return np.stack(images)


def _spelled_otherwise(extra: Iterable[str], names: Iterable[str]) -> str:
    known = {unicodedata.normalize("NFC", name): name for name in names}
    for name in sorted(extra):
        if (same := known.get(unicodedata.normalize("NFC", name))) is not None:
            return f"; {name!a} is {same!a} in another spelling of Unicode: rename it"
    return ""


def _rows(root: Path, names: Sequence[str], reader: ImageReader, first_id: int) -> tuple[Rows, list[Path]]:
    """The images of classes, and where each lies."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = images_below(root / name) if os.path.isdir(root / name) else []
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"{root}: holds no images; they must end in {', '.join(sorted(SUFFIXES))}")

    def images() -> Iterator[NDArray[np.generic]]:
        for start in range(0, len(paths), READ_AT_ONCE):
            yield np.stack([reader.read(path, str(path)) for path in paths[start : start + READ_AT_ONCE]])

    file = cached_rows(paths, {"mode": reader.mode, "size": reader.size}, images)
    return rows_of(file, np.array(labels, np.int64), first_id), paths


def _class_names(root: Path) -> list[str]:
    try:
        names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as e:
        raise DataError(f"{root}: cannot be read as a folder ({e.strerror})") from None
    if len(names) < 2:
        raise DataError(
            f"{root}: has {listed(names) or 'no folder'} for classes; there must be at least 2, each with its images"
        )
    if SPLITS.issuperset(map(str.lower, names)):
        raise DataError(
            f"{root}: has the folders {listed(names)}, which are splits and no classes; call them train and test, or "
            "name one of them as data.path and set rows aside by data.test_rows"
        )
    return names


def images_below(folder: Path) -> list[Path]:
    """Files of images at any depth, sorted by path; nothing that starts with a dot.

    A folder is read once, where it stands, or else at the first link that leads there.

    Raises:
        DataError: a folder cannot be read.
    """
    found, seen, starts = [], set(), [folder]
    for start in starts:  # which grows by the links below
        for place, folders, files in os.walk(start, onerror=_refuse_folder):
            path = Path(place)
            if (real := path.resolve()) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(f for f in folders if not f.startswith("."))  # the disk's order decides nothing
            starts += [path / f for f in folders if os.path.islink(path / f)]
            found += [path / f for f in files if Path(f).suffix.lower() in SUFFIXES and not f.startswith(".")]
    return sorted(found)


def _refuse_folder(e: OSError) -> None:
    raise DataError(f"{e.filename}: cannot be read as a folder ({e.strerror})")
