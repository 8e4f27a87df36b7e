"""How a wide layer becomes narrow: one seeded projection for every way in which a model becomes a detector's.

Needs neither torch nor onnx, so that a model from either side is reduced in the same way and says so in the same words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST_NORM = 1e-12
"""Rows shorter than this are not normalised: a row of dead units stays zero instead of turning into NaN."""


def projection_matrix(width: int, max_dim: int, seed: int) -> NDArray[np.float32] | None:
    """`[width, max_dim]` Gaussian matrix, None where `width` is small enough as it is.

    It keeps distances to about sqrt(2 / max_dim) relative (Johnson & Lindenstrauss 1984), so the bank and every request
    pay for `max_dim` numbers only.

    Args:
        width: numbers in one flattened activation.
        max_dim: wider activations are projected to this many numbers.
        seed: equal seeds give equal matrices.
    """
    if width <= max_dim:
        return None
    matrix = np.random.default_rng(seed).normal(size=(width, max_dim)) / np.sqrt(max_dim)
    return matrix.astype(np.float32)


def describe_reducer(width: int, max_dim: int, seed: int) -> str:
    """What the model's metadata and the manifest say about `projection_matrix` of the same arguments."""
    return "none" if width <= max_dim else f"gaussian-projection({width}->{max_dim}, seed={seed})"
