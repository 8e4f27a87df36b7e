"""Images made worse by degrees: noise, blur, rotation, brightness. Same rows, seed and severity give the same images.

After the corruptions of Hendrycks & Dietterich 2019, in units that suit images of any size and range of values: so
severities compare between data sets, not with that paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CHANNELS = (1, 3, 4)
SMALLEST_SIDE = 4

Images = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to make an image worse."""

    levels: tuple[float, ...]
    """How much, from severity 1 up."""
    unit: str
    apply: Callable[[Images, float, tuple[int, int], np.random.Generator], Images]
    """Images with values scaled to [0, 1], a level, the two axes of the picture, randomness -> images."""


def image_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes of height and width of an array whose rows have that shape; None where they are no images.

    Args:
        shape: of one row: `[H, W]`, `[H, W, C]` or `[C, H, W]` with 1, 3 or 4 channels and sides of 4 pixels or more.
    """
    if len(shape) == 2 or (len(shape) == 3 and shape[2] in CHANNELS):
        axes = (1, 2)
    elif len(shape) == 3 and shape[0] in CHANNELS:
        axes = (2, 3)
    else:
        return None
    return axes if min(shape[a - 1] for a in axes) >= SMALLEST_SIDE else None


def no_images(x: NDArray[np.generic]) -> str | None:
    """Why rows `[n, ...]` cannot be corrupted as images; None where they can."""
    if image_axes(x.shape[1:]) is None:
        return f"rows of shape {list(x.shape[1:])} are no images, [H, W], [H, W, C] or [C, H, W]"
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        return f"rows of {x.dtype} are no images, which have uint8 or floating point"
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    if max(-low, high, high - low) > float(np.finfo(np.float32).max):
        return f"their numbers reach from {low:.3g} to {high:.3g}, which is more than float32 holds"
    return None


def corrupt(
    x: NDArray[np.generic], kind: str, severity: int, *, value_range: tuple[float, float], seed: int
) -> NDArray[np.generic]:
    """Corrupt images.

    Args:
        x: `[n, ...]` images for which `no_images` finds nothing to say.
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5; 0 returns the images as they are.
        value_range: smallest and largest value that an image may have; nothing leaves it.
        seed: of the noise, and of which way each image turns.

    Returns:
        Same shape and dtype.
    """
    axes = image_axes(x.shape[1:])
    assert axes is not None, "no_images says so"
    if severity == 0:
        return x
    corruption = CORRUPTIONS[kind]
    low, high = value_range
    width = high - low
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(kind), severity])
    unit = (x.astype(np.float32) - np.float32(low)) / np.float32(width or 1.0)
    worse = np.clip(corruption.apply(unit, corruption.levels[severity - 1], axes, rng), 0.0, 1.0) * width + low
    return (np.rint(worse) if x.dtype.kind == "u" else worse).astype(x.dtype)


def _noise(x: Images, level: float, axes: tuple[int, int], rng: np.random.Generator) -> Images:
    return x + np.float32(level) * rng.standard_normal(x.shape, np.float32)


def _blur(x: Images, level: float, axes: tuple[int, int], rng: np.random.Generator) -> Images:
    sigma = [level * x.shape[a] if a in axes else 0.0 for a in range(x.ndim)]
    return np.asarray(ndimage.gaussian_filter(x, sigma, mode="nearest"))


def _rotate(x: Images, level: float, axes: tuple[int, int], rng: np.random.Generator) -> Images:
    turned, left = x.copy(), rng.random(len(x)) < 0.5
    for rows, angle in ((left, level), (~left, -level)):
        if rows.any():
            turned[rows] = ndimage.rotate(x[rows], angle, axes=axes, reshape=False, order=1, mode="nearest")
    return turned


def _brighten(x: Images, level: float, axes: tuple[int, int], rng: np.random.Generator) -> Images:
    return x + np.float32(level)


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": Corruption(
        levels=(0.05, 0.1, 0.2, 0.3, 0.5), unit="Gaussian noise; standard deviation / range of values", apply=_noise
    ),
    "blur": Corruption(
        levels=(0.02, 0.035, 0.05, 0.075, 0.1), unit="Gaussian blur; standard deviation / side of image", apply=_blur
    ),
    "rotation": Corruption(levels=(5, 10, 20, 30, 45), unit="rotation to either side; degrees", apply=_rotate),
    "brightness": Corruption(
        levels=(0.1, 0.2, 0.3, 0.4, 0.5), unit="added brightness; share of range of values", apply=_brighten
    ),
}
SEVERITIES = 5
