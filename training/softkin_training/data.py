"""Rows for a run: load a source, check it, split it into disjoint parts, deal it out in class-balanced batches.

    train         fits the weights, and fills the bank
    calibration   sets the p-values; disjoint from train, else they would look too familiar
    test          untouched rows of the known classes
    outliers      named sets of rows that belong to no known class; never used for fitting

No row stands in two parts. Errors come before training starts, and say what to change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from softkin.errors import DataError, RecipeError
from softkin.manifest import INPUT_DTYPES
from softkin_training.config import Recipe
from softkin_training.npz import checked_labels, read_npz
from softkin_training.rows import Rows, row_digests
from softkin_training.split import first_of_each

Array = NDArray[Any]

UNKNOWN_DIGITS, HELD_OUT = HELD_OUT_SETS = ("unknown digits", "held-out classes")
"""Outlier sets made of classes that a recipe leaves out: near outliers."""
MADE_OUTLIERS = 500
"""Rows in each outlier set that is made rather than loaded."""


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


def load_dataset(recipe: Recipe) -> Dataset:
    """Load, check and split the data of a recipe.

    The split is a seeded plain permutation: unlike stratifying, it leaves calibration and test rows exchangeable.

    Raises:
        RecipeError: data.path is empty, or a class or outlier name of the recipe does not fit the source.
        DataError: a file cannot be read, or its rows are unfit; the message names file, array and remedy.
    """
    rng = np.random.default_rng(recipe.seed)
    dataset = _digits(recipe, rng) if recipe.data.source == "digits" else _npz(recipe, rng)
    for name, path in recipe.data.outliers.items():
        if name in dataset.outliers:
            raise RecipeError(f"data.outliers.{name}: this source makes a set of that name itself; choose another name")
        dataset.outliers[name] = read_npz(path, ("x_test",))["x_test"]
    _check(dataset, recipe.data.path or recipe.data.source)
    return dataset


def balanced_batches(labels: torch.Tensor, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Deal one epoch into batches that each mirror the class mix of the whole.

    Every row is visited exactly once. A class that is in a batch at all brings at least 2 rows, so that SNNL finds it a
    partner; of classes of equal size, each is in every batch where batch_size is at least twice their number. Unequal
    classes keep their shares, so none is seen more often than it occurs: one too rare for 2 rows in every batch is
    dealt in pairs to the batches that are shortest so far (and a class of one row stands alone).

    Args:
        labels: `[n]` integer labels, on CPU.
        batch_size: rows per batch; the average lies between this and, for fewer than 2 batches' worth, twice this.
        generator: source of randomness.

    Yields:
        `[b]` int64 indices into `labels`.
    """
    num_batches = max(1, len(labels) // batch_size)
    batches: list[list[torch.Tensor]] = [[] for _ in range(num_batches)]
    sizes = torch.zeros(num_batches)
    classes = labels.bincount().nonzero().squeeze(1)
    for label in classes[torch.randperm(len(classes), generator=generator)]:
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        shortest_first = (sizes + torch.rand(num_batches, generator=generator)).argsort()
        served = shortest_first[: max(1, len(rows) // 2)]
        for batch, share in zip(served.tolist(), rows.tensor_split(len(served)), strict=True):
            batches[batch].append(share)
            sizes[batch] += len(share)
    for shares in batches:
        if shares:
            yield torch.cat(shares)


def _digits(recipe: Recipe, rng: np.random.Generator) -> Dataset:
    from sklearn.datasets import load_digits, load_sample_images

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    known, y_known = _relabel(y, recipe.data.known_classes, num_classes=10, source="digits")
    everything = Rows(x[known], y_known, np.flatnonzero(known))
    rows = first_of_each(everything)
    sizes = {"data.test_rows": recipe.data.test_rows, "data.calibration_rows": recipe.data.calibration_rows}
    test, calibration, train = _split(rows, sizes, rng)

    photos = [image.mean(axis=2) for image in load_sample_images().images]
    greys = np.stack([_random_patch(photos[i], 8, rng) for i in rng.integers(len(photos), size=MADE_OUTLIERS)])
    outliers: dict[str, Array] = {
        "photo patches": np.rint(greys * 16 / 255).astype(np.uint8),
        "noise": rng.integers(0, 17, size=(MADE_OUTLIERS, 8, 8), dtype=np.uint8),
        "inverted digits": 16 - test.x,
    }
    if not known.all():
        outliers = {UNKNOWN_DIGITS: x[~known], **outliers}
    names = tuple(str(c) for c in recipe.data.known_classes or range(10))
    return Dataset(train, calibration, test, outliers, names, len(everything) - len(rows))


def _npz(recipe: Recipe, rng: np.random.Generator) -> Dataset:
    path, chosen = recipe.data.path, recipe.data.known_classes
    if not path:
        raise RecipeError("data.path is empty; name the npz file: --set data.path=FILE.npz")
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test", "class_names"))
    names = [str(n) for n in arrays["class_names"].reshape(-1)]
    y_train, y_test = (checked_labels(arrays, split, len(names), path) for split in ("train", "test"))

    known, labels = _relabel(y_train, chosen, num_classes=len(names), source=path)
    everything = Rows(arrays["x_train"][known], labels, np.flatnonzero(known))
    known, labels = _relabel(y_test, chosen, num_classes=len(names), source=path)
    test = Rows(arrays["x_test"][known], labels, len(y_train) + np.flatnonzero(known))
    rows = first_of_each(everything, row_digests(test.x))
    calibration, train = _split(rows, {"data.calibration_rows": recipe.data.calibration_rows}, rng)

    outliers = {} if known.all() else {HELD_OUT: arrays["x_test"][~known]}
    class_names = tuple(names[c] for c in chosen or range(len(names)))
    return Dataset(train, calibration, test, outliers, class_names, len(everything) - len(rows))


def _relabel(
    y: NDArray[np.int64], known_classes: Sequence[int], *, num_classes: int, source: str
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows are of known classes, and their labels 0..K-1 in the order of `known_classes`."""
    if outside := [c for c in known_classes if c >= num_classes]:
        allowed = f"{source} has classes 0 to {num_classes - 1}"
        raise RecipeError(f"data.known_classes is {list(known_classes)}, with {outside[0]} in it; {allowed}")
    new_label = np.full(num_classes, -1, dtype=np.int64)
    chosen = list(known_classes) or list(range(num_classes))
    new_label[chosen] = np.arange(len(chosen))
    labels = new_label[y]
    return labels >= 0, labels[labels >= 0]


def _split(rows: Rows, sizes: dict[str, int], rng: np.random.Generator) -> list[Rows]:
    """Parts of the given sizes, then the rest."""
    wanted = sum(sizes.values())
    if len(rows) <= wanted:
        asked = " + ".join(f"{k} = {n}" for k, n in sizes.items())
        raise DataError(f"{asked} need {wanted} rows, and more to train on; there are {len(rows)} distinct ones")
    order = rng.permutation(len(rows))
    return [rows.take(part) for part in np.split(order, np.cumsum(list(sizes.values())))]


def _random_patch(image: Array, size: int, rng: np.random.Generator) -> Array:
    top, left = (rng.integers(n - size + 1) for n in image.shape)
    return image[top : top + size, left : left + size]


def _check(dataset: Dataset, source: str) -> None:
    reference = dataset.train.x
    parts = {"train": reference, "calibration": dataset.calibration.x, "test": dataset.test.x}
    for what, x in {**parts, **{f"outliers {k!r}": v for k, v in dataset.outliers.items()}}.items():
        if len(x) == 0:
            raise DataError(f"{source}: {what} has no rows")
        if x.dtype.name not in INPUT_DTYPES or x.ndim < 2 or x.ndim > 4:
            allowed = f"one of {INPUT_DTYPES} with rows of 1 to 3 axes"
            raise DataError(f"{source}: {what} is {x.dtype} {x.shape}; it must be {allowed}")
        if x.dtype != reference.dtype or x.shape[1:] != reference.shape[1:]:
            got, expected = (f"{a.dtype} {a.shape[1:]}" for a in (x, reference))
            raise DataError(f"{source}: rows of {what} are {got}, those of train {expected}; convert them")
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))
        if len(bad):
            many = f"{len(bad)} rows with NaN or infinity, first row {bad[0]}"
            raise DataError(f"{source}: {what} has {many}; remove them")
    counts = np.bincount(dataset.train.y, minlength=len(dataset.class_names))
    if counts.min() < 2:
        few = {name: int(n) for name, n in zip(dataset.class_names, counts, strict=True) if n < 2}
        raise DataError(
            f"{source}: after the split train holds {few} rows of these classes; each needs at least 2: "
            "add rows, lower data.calibration_rows, or leave them out by data.known_classes"
        )
