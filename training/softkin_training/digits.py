"""scikit-learn's handwritten digits as data that need no file, and outliers made beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin_training.rows import Rows
from softkin_training.sources import Source

Array = NDArray[Any]

MADE_OUTLIERS = 500
"""Rows in each outlier set that is made rather than loaded."""


def read_digits() -> Source:
    """1,797 images of 8x8 numbers from 0 to 16, without a test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8), bunch.target.astype(np.int64)
    return Source(train=Rows(x, y, np.arange(len(y))), test=None, class_names=tuple("0123456789"))


def made_outliers(test_x: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Patches of photographs, noise, and the test rows `[n, 8, 8]` inverted."""
    from sklearn.datasets import load_sample_images

    photos = [image.mean(axis=2) for image in load_sample_images().images]
    greys = np.stack([_random_patch(photos[i], 8, rng) for i in rng.integers(len(photos), size=MADE_OUTLIERS)])
    return {
        "photo patches": np.rint(greys * 16 / 255).astype(np.uint8),
        "noise": rng.integers(0, 17, size=(MADE_OUTLIERS, 8, 8), dtype=np.uint8),
        "inverted digits": 16 - test_x,
    }


def _random_patch(image: Array, size: int, rng: np.random.Generator) -> Array:
    top, left = (rng.integers(n - size + 1) for n in image.shape)
    return image[top : top + size, left : left + size]
