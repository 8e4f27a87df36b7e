"""`softkin-train entanglement`: what it refuses, and what it prints."""

from __future__ import annotations

import argparse

import numpy as np
import torch

from softkin import bundle as bundles
from softkin.display import spelled
from softkin.errors import DataError, InvalidInputError
from softkin_training.losses import entanglement
from softkin_training.npz import Array, read_npz
from softkin_training.subject import Subject


def print_entanglement(arguments: argparse.Namespace) -> None:
    """Print the entanglement of each layer of BUNDLE on the first ROWS rows of FILE, beside chance.

    Raises:
        InvalidInputError: too few rows are asked for, or they are none that the bundle takes.
        DataError: the file cannot be read, or its labels are unfit.
        BundleError: the bundle is damaged.
    """
    if arguments.rows < 2:
        raise InvalidInputError("--rows", f"got {arguments.rows}; must be at least 2, for rows are compared")
    data = read_npz(arguments.data, ("x_test", "y_test"))
    y = _labels(data["x_test"], data["y_test"], arguments.data)[: arguments.rows]
    subject = Subject(bundles.read_bundle(arguments.bundle))
    x = subject.check(data["x_test"][: arguments.rows], f"x_test of {arguments.data}")
    counts = np.unique(y, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        found = "are all of one class" if len(counts) == 1 else "have no class twice"
        raise DataError(
            f"{arguments.data}: the first {len(y)} rows {found}, so nothing can be told of how classes mix; shuffle "
            "the rows, or take more by --rows"
        )
    z = subject.run(x).z
    names = {layer: spelled(layer) for layer in subject.layers}
    width = max(16, *(len(name) + 2 for name in names.values()))
    print(f"{'layer':<{width}}{'entanglement':>14}{'chance':>10}{'ratio':>8}{'temperature':>14}   ({len(x)} rows)")
    for layer in subject.layers:  # before any whitening: entanglement is the network's, not that of a map fitted to it
        e = entanglement(torch.from_numpy(z[layer]), torch.from_numpy(y), metric=subject.metric(layer))
        print(f"{names[layer]:<{width}}{e.value:>14.4f}{e.chance:>10.4f}{e.ratio:>8.3f}{e.temperature:>14.4g}")


def _labels(x: Array, y: Array, path: str) -> Array:
    """Labels are only compared with each other, so they need not be classes of the bundle."""
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{path}: y_test is {y.dtype} {y.shape}; it must be one integer per row")
    rows = len(x) if x.ndim else 0
    if rows != len(y):
        raise DataError(f"{path}: x_test has {rows} rows, y_test {len(y)}; they must be equal")
    return y.astype(np.int64)
