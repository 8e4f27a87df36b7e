"""How the loss changes with its temperature, and the steps that follow its minimiser, against differences of loops."""

from __future__ import annotations

import math

import pytest
import torch

from snnl_reference import CASES, METRICS, batch, looped_loss
from softkin_training.distances import pairwise_distances
from softkin_training.losses import LayeredSnnl
from softkin_training.snnl_math import Neighbours, derivatives
from softkin_training.snnl_temperature import follow

pytestmark = pytest.mark.training

LARGEST_STEP = 0.7


def differences(z, y, temperature, metric, h=1e-3):
    """Slope and curvature of the looped loss in log T."""
    below, at, above = (looped_loss(z, y, temperature * math.exp(s), metric) for s in (-h, 0.0, h))
    return (above - below) / (2 * h), (above - 2 * at + below) / h**2


def two_layers(z, metric):
    """Layers that differ in width and size, and their distances."""
    layers = [z, 3 * z[:, :2]]
    return layers, torch.stack([pairwise_distances(layer, metric) for layer in layers])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("relative_temperature", [0.1, 0.5, 2.0, 20.0])
@pytest.mark.parametrize("case", ["plain", "singletons among pairs", "nobody has a partner", "norm 1e4"])
def test_derivatives_in_log_temperature_are_the_numerical_ones(case, relative_temperature, metric):
    """Of each layer at its own temperature; rows without a partner do not count."""
    z, y = CASES[case]
    layers, distances_LBB = two_layers(z, metric)
    temperature_L = relative_temperature * distances_LBB.mean(dim=(1, 2)) * torch.tensor([1.0, 1.5])

    found = derivatives(distances_LBB, Neighbours.of(y), temperature_L)

    for i, rows in enumerate(layers):
        slope, curvature = differences(rows, y, float(temperature_L[i]), metric)
        assert float(found.slope[i]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
        assert float(found.curvature[i]) == pytest.approx(curvature, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("relative_temperature", "convex", "clipped"),
    [(0.03, True, True), (0.2, True, False), (0.3, True, False), (3.0, False, True), (100.0, False, True)],
)
def test_a_step_is_newtons_downhill_and_at_most_a_factor_of_two(relative_temperature, convex, clipped):
    """Where the loss is concave in log T, Newton's own step would go uphill."""
    z, y = batch(48)
    distances_BB = pairwise_distances(z, "squared_euclidean")
    temperature = relative_temperature * float(distances_BB.mean())
    slope, curvature = differences(z, y, temperature, "squared_euclidean")
    step = -slope / abs(curvature)
    assert (curvature > 0, abs(step) > LARGEST_STEP) == (convex, clipped)

    found = follow(distances_BB.unsqueeze(0), Neighbours.of(y), torch.tensor([temperature]).double(), 1)

    expected = max(-LARGEST_STEP, min(step, LARGEST_STEP))
    assert math.log(float(found) / temperature) == pytest.approx(expected, rel=1e-3)


def test_a_step_away_from_a_maximum_is_as_short_as_one_towards_a_minimum():
    """Where classes are nested the loss has a maximum in T between two minima: a full step might miss one."""
    z, y = torch.tensor([[0.0], [1.0], [2.0], [9.0]], dtype=torch.float64), torch.tensor([0, 1, 1, 1])
    slope, curvature = differences(z, y, 20.0, "squared_euclidean")
    assert (slope > 0, curvature < 0, slope / -curvature < LARGEST_STEP / 2) == (True, True, True)

    distances_LBB = pairwise_distances(z, "squared_euclidean").unsqueeze(0)
    found = follow(distances_LBB, Neighbours.of(y), torch.tensor([20.0]).double(), 1)

    assert math.log(float(found) / 20.0) == pytest.approx(slope / curvature, rel=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_several_steps_are_taken_on_one_batch(metric):
    """Each from where the last one ended, layer by layer. In training it is one, unless more are asked for."""
    z, y = batch(48)
    _, distances_LBB = two_layers(z, metric)
    neighbours = Neighbours.of(y)
    start_L = distances_LBB.mean(dim=(1, 2)) * torch.tensor([10.0, 0.1])

    found, expected = follow(distances_LBB, neighbours, start_L, 3), start_L
    for _ in range(3):
        expected = follow(distances_LBB, neighbours, expected, 1)
    torch.testing.assert_close(found, expected)

    one, three = LayeredSnnl(["a"], metric=metric), LayeredSnnl(["a"], metric=metric, newton_steps=3)
    for snnl, batches in ((one, 3), (three, 1)):
        snnl.temperature.fill_(float(start_L[0]))
        for _ in range(batches):
            snnl({"a": z}, y)
    assert one.temperatures()["a"] == pytest.approx(float(found[0]), rel=1e-9)
    assert three.temperatures()["a"] == pytest.approx(float(found[0]), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("start", "end"), [(1e-9, 1e-3), (1e9, 1e3)])
def test_a_temperature_out_of_range_comes_back_at_once(start, end, scale):
    """Between a thousandth and a thousand times the mean distance of each layer of this batch, however large it is."""
    z, y = batch(48, scale=scale)
    _, distances_LBB = two_layers(z, "squared_euclidean")
    mean_L = distances_LBB.mean(dim=(1, 2))

    found = follow(distances_LBB, Neighbours.of(y), start * mean_L, 1)

    torch.testing.assert_close(found / mean_L, torch.full_like(mean_L, end))


def test_a_temperature_at_which_exponents_overflow_comes_back_too():
    """In single precision they do at 1e-39, where neither slope nor curvature is a number."""
    z, y = batch(48, dtype=torch.float32)
    distances_LBB = pairwise_distances(z, "squared_euclidean").unsqueeze(0)

    found = follow(distances_LBB, Neighbours.of(y), torch.tensor([1e-39], dtype=torch.float64), 1)

    assert float(found) == pytest.approx(1e-3 * float(distances_LBB.mean()), rel=1e-4)


def test_a_batch_in_which_nobody_has_a_partner_moves_no_temperature_into_its_range():
    """However large its distances are."""
    z, _ = batch()
    distances_LBB = pairwise_distances(1e9 * z, "squared_euclidean").unsqueeze(0)
    start_L = torch.tensor([0.3], dtype=torch.float64)

    assert float(follow(distances_LBB, Neighbours.of(torch.arange(24)), start_L, 3)) == 0.3


def test_rows_that_are_all_equal_move_no_temperature():
    """Of another layer of the same batch they say nothing; a dead layer would be followed to where float32 ends."""
    z, y = batch(24)
    distances_LBB = torch.stack([torch.zeros(24, 24).double(), pairwise_distances(z, "squared_euclidean")])

    found = follow(distances_LBB, Neighbours.of(y), torch.tensor([0.3, 0.3]).double(), 1)

    assert float(found[0]) == pytest.approx(0.3)
    assert float(found[1]) != pytest.approx(0.3)
