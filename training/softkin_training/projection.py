"""How a wide layer becomes narrow: one seeded projection for every way in which a model becomes a detector's.

Needs neither torch nor onnx, so that a model from either side is reduced in the same way and says so in the same words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST_NORM = 1e-12
"""Rows shorter than this are not normalised: a row of dead units stays zero instead of turning into NaN."""
CHANNELS_FIRST = (0, 3, 1, 2)
"""What makes `[B, C, H, W]` of `[B, H, W, C]`."""


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


def channels_last(shape: Sequence[int]) -> bool:
    """Whether one activation is taken for maps `[H, W, C]`: of `[C, H, W]` it is the last two that are alike."""
    return len(shape) == 3 and shape[0] == shape[1] != shape[2]


def _last(shape: Sequence[int], known: bool | None) -> bool:
    return channels_last(shape) if known is None else known


def pooling(shape: Sequence[int], max_side: int, *, last: bool | None = None) -> tuple[int, int]:
    """Side of the squares whose means take the place of an activation's numbers, and how many numbers are left.

    Neighbours in a map say much the same, so that a random projection of all of them keeps less of what tells rows
    apart than one of their means (docs/decisions/0027).

    Args:
        shape: of one activation; maps are `[C, H, W]`, or `[H, W, C]` where `channels_last` says so; anything else is
            left as it is: squares of 1.
        max_side: the most rows or columns that maps keep; 0 = all of them.
        last: whether maps are `[H, W, C]`, where that is known.
    """
    if not max_side or len(shape) != 3:
        return 1, math.prod(shape)
    channels, *lengths = (shape[2], *shape[:2]) if _last(shape, last) else shape
    side = -(-max(lengths) // max_side)
    return side, channels * math.prod(-(-n // side) for n in lengths)


def pooled(z: NDArray[Any], side: int, *, last: bool | None = None) -> NDArray[Any]:
    """`[B, C, ceil(H / side), ceil(W / side)]` means of squares of maps; those at the far edges may be smaller.

    `last` as for `pooling`.
    """
    if _last(z.shape[1:], last):
        z = z.transpose(CHANNELS_FIRST)
    for axis in (2, 3):
        starts = np.arange(0, z.shape[axis], side)
        sizes = np.diff(starts, append=z.shape[axis])
        z = np.add.reduceat(z, starts, axis=axis) / np.expand_dims(sizes, tuple(range(1, z.ndim - axis)))
    return z


def describe_reducer(width: int, max_dim: int, seed: int, side: int = 1) -> str:
    """What the model's metadata and the manifest say about `projection_matrix` after `pooling` to `width` numbers."""
    steps = [f"average-pool({side}x{side})"] if side > 1 else []
    steps += [f"gaussian-projection({width}->{max_dim}, seed={seed})"] if width > max_dim else []
    return " + ".join(steps) or "none"
