"""Feature maps averaged over squares: the same numbers for the loss, for representations, and in NumPy."""

from __future__ import annotations

import pytest
import torch

from snnl_reference import METRICS
from softkin_training.averaged_maps import averaged
from softkin_training.losses import LayeredSnnl
from softkin_training.projection import pooled

pytestmark = pytest.mark.training

SHAPES = {"even": (3, 8, 8), "edges left over": (2, 7, 5), "channels last": (6, 6, 4), "narrow": (5, 1, 9)}
HALVES = {"even": 4, "edges left over": 4, "channels last": 3, "narrow": 5}
"""Sides of the squares of which a map has two rows or columns at most."""
Y = torch.arange(24) % 3


def maps(shape, dtype=torch.float64):
    """Of 24 rows, whose classes overlap."""
    z = torch.randn(24, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (z + Y.reshape(-1, 1, 1, 1)).to(dtype).requires_grad_()


@pytest.mark.parametrize("side", [1, 2, 3, 9])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_squares_become_their_means(shape, side):
    """Also smaller ones at the edges."""
    z = maps(shape).detach()

    found = averaged(z, side)

    expected = torch.from_numpy(pooled(z.numpy(), side)) if side > 1 else z
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_half_precision_is_averaged_in_float32():
    """Means of many numbers of eight bits would lose most of what tells them apart."""
    z = maps((2, 16, 16), torch.bfloat16)

    torch.testing.assert_close(averaged(z, 16), z.float().mean(dim=(2, 3), keepdim=True), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_loss_of_averaged_maps_is_that_of_their_means(name, metric):
    """With its gradient, before and after the first batch."""
    means, whole = LayeredSnnl(["a", "b"], metric=metric), LayeredSnnl(["a", "b"], metric=metric, max_side=2)
    for _ in range(2):
        z, flat = maps(SHAPES[name]), torch.randn(24, 5, dtype=torch.float64)
        expected = means({"a": averaged(z, HALVES[name]), "b": flat}, Y)
        found = whole({"a": z, "b": flat}, Y)

        assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in expected.items()}
        gradients = [torch.autograd.grad(loss["a"], z)[0] for loss in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
        assert gradients[0].any()
