"""New rows for a finished bundle, to evaluate or recalibrate it: an npz file, or a folder of images. Needs no torch."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError
from softkin.manifest import Manifest
from softkin_training.fit_rows import ONE_CLASS, checked_rows, read_test_rows
from softkin_training.image_folder import SUFFIXES, images_below
from softkin_training.image_reader import ImageReader, Mode
from softkin_training.npz import checked_labels, read_npz

Array = NDArray[Any]


def read_inputs(path: Path, manifest: Manifest) -> Array:
    """`[n, ...]` `x_test` of an npz file, or all images below a folder as the detector takes them.

    Args:
        path: file or folder.
        manifest: of the bundle; images are resized where its recipe resized the training images.

    Raises:
        DataError: unreadable, no images, or images that the detector does not take.
    """
    return (
        _read_images(path, images_below(path), manifest)
        if os.path.isdir(path)
        else read_npz(path, ("x_test",))["x_test"]
    )


def read_labelled(path: Path, manifest: Manifest) -> tuple[Array, NDArray[np.int64] | None]:
    """The same with labels, where they are known.

    Those of an npz file are its `y_test`, of images the folders directly below `path`, where all are called like
    classes, in whichever spelling of Unicode. None where the detector knows a single class, whatever labels the file
    has.

    Raises:
        DataError: as `read_inputs` does, labels are none of the classes, or a folder is called like two classes.
    """
    classes = manifest.classes
    if os.path.isdir(path):
        images = images_below(path)
        x = _read_images(path, images, manifest)
        return x, _labels_by_folder(path, images, classes)
    if classes == (ONE_CLASS,):
        return read_inputs(path, manifest), None
    arrays = read_npz(path, ("x_test",), optional=("y_test",))
    return arrays["x_test"], checked_labels(arrays, "test", len(classes), path) if "y_test" in arrays else None


def read_calibrating(path: Path, manifest: Manifest) -> tuple[Array, NDArray[np.int64] | None]:
    """The same, checked: zeros for labels where the detector knows a single class, None where none are known.

    Raises:
        DataError: as `read_labelled` does, rows are none or not finite, or a folder labels some of its images only.
    """
    classes = manifest.classes
    if not os.path.isdir(path):
        if classes == (ONE_CLASS,):
            return read_test_rows(path, classes)
        arrays = read_npz(path, ("x_test",), optional=("y_test",))
        y = checked_labels(arrays, "test", len(classes), path) if "y_test" in arrays else None
        return checked_rows(arrays["x_test"], "x_test", path), y
    x, y = read_labelled(path, manifest)
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


def _read_images(folder: Path, images: list[Path], m: Manifest) -> Array:
    if not images:
        raise DataError(f"{folder}: holds no images; they must end in {', '.join(sorted(SUFFIXES))}")
    mode: Mode = "L" if len(m.input_shape) == 2 else "RGB"
    if m.input_dtype != "uint8" or len(m.input_shape) < 2 or m.input_shape[2:] not in ((), (3,)):
        takes = ", ".join(["rows", *map(str, m.input_shape)])
        raise DataError(
            f"{folder}: is a folder, whose images are read as uint8 [rows, height, width] or [rows, height, width, 3], "
            f"and this detector takes {m.input_dtype} [{takes}]; give an .npz with x_test"
        )
    height, width = m.input_shape[:2]
    resized = m.provenance.get("recipe", {}).get("data", {}).get("image_size")
    found = []
    for path in images:
        image = ImageReader(mode, [height, width] if resized else []).read(path, str(path))
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{path}: is {image.shape[0]} x {image.shape[1]} pixels, and this detector takes {height} x {width}, "
                "which its recipe did not resize to; resize it as whoever calls the detector would"
            )
        found.append(image)
    return np.stack(found)
