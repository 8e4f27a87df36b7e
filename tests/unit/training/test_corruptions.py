"""Corruptions: the same again from the same seed, never out of range, worse by degrees, whatever the layout."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from softkin_training.corruptions import CORRUPTIONS, SEVERITIES, corrupt, image_axes, no_images

pytestmark = pytest.mark.training

KINDS = pytest.mark.parametrize("kind", list(CORRUPTIONS))


def photos(n=3, shape=(32, 24)):
    """Smooth pictures in uint8."""
    rng = np.random.default_rng(0)
    return (ndimage.gaussian_filter(rng.random((n, *shape)), (0, 2, 2, 0)[: 1 + len(shape)]) * 255).astype(np.uint8)


def worse(x, kind, severity, seed=0, value_range=(0.0, 255.0)):
    """With the range of uint8."""
    return corrupt(x, kind, severity, value_range=value_range, seed=seed)


@KINDS
def test_the_same_seed_gives_the_same_images(kind):
    """And noise of another seed is other noise."""
    x = photos()

    np.testing.assert_array_equal(worse(x, kind, 3), worse(x, kind, 3))
    if kind == "noise":
        assert (worse(x, kind, 3, seed=1) != worse(x, kind, 3)).any()


@KINDS
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_shape_dtype_and_range_stay(kind, dtype):
    """Whatever the severity; severity 0 changes nothing."""
    x = (photos() / 255 * 16).astype(dtype)

    for severity in range(SEVERITIES + 1):
        found = worse(x, kind, severity, value_range=(0.0, 16.0))
        assert (found.shape, found.dtype) == (x.shape, x.dtype)
        assert found.min() >= 0
        assert found.max() <= 16
    np.testing.assert_array_equal(worse(x, kind, 0), x)


@KINDS
def test_severity_moves_images_away_from_what_they_were(kind):
    """Mean absolute difference grows with every step."""
    x = photos(20)
    away = [np.abs(worse(x, kind, s).astype(float) - x).mean() for s in range(SEVERITIES + 1)]

    assert all(a < b for a, b in pairwise(away)), away


@KINDS
def test_layouts_agree(kind):
    """[H, W], [H, W, 1] and [1, H, W] hold the same picture."""
    x = photos()

    flat = worse(x, kind, 2)
    np.testing.assert_array_equal(worse(x[..., None], kind, 2)[..., 0], flat)
    np.testing.assert_array_equal(worse(x[:, None], kind, 2)[:, 0], flat)


@pytest.mark.parametrize("kind", ["blur", "rotation", "brightness"])
def test_colours_are_treated_one_by_one(kind):
    """Nothing leaks from channel to channel; noise draws its own numbers for each."""
    x = np.stack([photos(), photos()[::-1]], axis=-1)[..., [0, 1, 0]]

    found = worse(x, kind, 4)
    np.testing.assert_array_equal(found[..., 0], worse(x[..., 0], kind, 4))
    np.testing.assert_array_equal(found[..., 0], found[..., 2])


def test_each_corruption_is_what_it_says():
    """Noise of the stated deviation, SciPy's blur and rotation, brightness by a shift."""
    grey = np.full((200, 16, 16), 0.5, np.float32)
    noise = corrupt(grey, "noise", 2, value_range=(0.0, 1.0), seed=0)
    assert noise.std() == pytest.approx(CORRUPTIONS["noise"].levels[1], rel=0.02)

    x = (photos() / 255).astype(np.float32)
    sides = (0, 0.05 * 32, 0.05 * 24)
    blurred = corrupt(x, "blur", 3, value_range=(0.0, 1.0), seed=0)
    np.testing.assert_allclose(blurred, ndimage.gaussian_filter(x, sides, mode="nearest"), atol=1e-5)

    turned = corrupt(x, "rotation", 3, value_range=(0.0, 1.0), seed=0)
    both = [ndimage.rotate(x, a, axes=(1, 2), reshape=False, order=1, mode="nearest") for a in (20, -20)]
    for i, image in enumerate(turned):
        assert min(np.abs(image - b[i]).max() for b in both) < 1e-5

    brighter = corrupt(x * 0.4, "brightness", 5, value_range=(0.0, 1.0), seed=0)
    np.testing.assert_allclose(brighter, x * 0.4 + 0.5, atol=1e-6)


@KINDS
def test_where_the_range_of_values_begins_does_not_matter(kind):
    """Pictures in -1 to 1 are made worse as those in 0 to 2 are."""
    x = (photos() / 255 * 2).astype(np.float32)

    found = worse(x - 1, kind, 4, value_range=(-1.0, 1.0))
    np.testing.assert_allclose(found + 1, worse(x, kind, 4, value_range=(0.0, 2.0)), atol=1e-5)


@KINDS
def test_pictures_of_one_value_alone_stay_as_they_are(kind):
    """Nothing leaves a range that has no width, nor becomes NaN."""
    x = np.full((2, 8, 8), 3.0, np.float32)

    np.testing.assert_array_equal(worse(x, kind, 5, value_range=(3.0, 3.0)), x)


def test_whole_numbers_are_rounded_to_the_nearest():
    """5 of 16 and a tenth of the range are 6.6."""
    assert (worse(np.full((1, 8, 8), 5, np.uint8), "brightness", 1, value_range=(0.0, 16.0)) == 7).all()


def test_pictures_turn_to_both_sides():
    """About half of them to each."""
    turned = worse(np.repeat(photos(1), 40, axis=0), "rotation", 5)

    sides = {image.tobytes(): int((turned == image).all(axis=(1, 2)).sum()) for image in turned}
    assert len(sides) == 2
    assert min(sides.values()) > 5


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((8, 8), (1, 2)),
        ((4, 4), (1, 2)),
        ((28, 28, 1), (1, 2)),
        ((32, 30, 3), (1, 2)),
        ((3, 32, 30), (2, 3)),
        ((4, 8, 8), (2, 3)),
        ((12,), None),
        ((3,), None),
        ((5, 32, 32), None),
        ((32, 2), None),
        ((3, 3, 3), None),
        ((2, 3, 32, 32), None),
        ((3, 16, 32, 32), None),
    ],
)
def test_images_are_told_from_other_rows(shape, axes):
    """By shape: two axes, or three with 1, 3 or 4 channels at either end."""
    assert image_axes(shape) == axes
    assert (no_images(np.zeros((2, *shape), np.uint8)) is None) == (axes is not None)


def test_other_integers_are_no_images():
    """They may be tokens."""
    for dtype in (np.uint8, np.float16, np.float32, np.float64):
        assert no_images(np.zeros((2, 8, 8), dtype)) is None
    assert "int64" in no_images(np.zeros((2, 8, 8), np.int64))
    assert "[12]" in no_images(np.zeros((2, 12), np.float32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("numbers", [(0.0, 1e300), (-3e38, 3e38), (1e300, 1e300), (-1.7e308, 1.7e308)])
def test_numbers_that_float32_does_not_hold_are_no_images(numbers):
    """Corrupted in float32 they were NaN, which a detector refuses, and with it went the whole report."""
    x = np.zeros((2, 8, 8)) + np.array(numbers)[:, None, None]

    assert no_images(x) == (
        f"their numbers reach from {min(numbers):.3g} to {max(numbers):.3g}, which is more than float32 holds"
    )
    assert no_images(np.clip(x, -1e38, 1e38)) is None
