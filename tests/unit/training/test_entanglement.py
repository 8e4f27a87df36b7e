"""Entanglement, its temperature, and the layered form that training uses."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnl_reference import CASES, METRICS, batch, distance, looped_loss
from softkin.errors import InvalidInputError
from softkin_training.losses import (
    LayeredSnnl,
    entanglement,
    entanglement_between,
    minimize_temperature,
    soft_nearest_neighbor_loss,
)

pytestmark = pytest.mark.training


@given(st.integers(4, 40), st.integers(2, 6), st.integers(2, 5), st.sampled_from(METRICS), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_minimizer_beats_a_fine_scan(num_rows, width, num_classes, metric, seed):
    """No temperature of a scan with 20 points per factor of ten is better, also where the loss has several minima."""
    z, y = batch(num_rows, width, num_classes, seed=seed)
    least = minimize_temperature(z, y, metric=metric)

    typical = np.quantile(
        [distance(a, b, metric) for i, a in enumerate(z.tolist()) for b in z.tolist()[:i]], 0.5, method="lower"
    )
    scan = [
        soft_nearest_neighbor_loss(z, y, temperature=typical * 10**u, metric=metric) for u in np.linspace(-3, 3, 121)
    ]

    assert least.value <= min(float(x) for x in scan) + 1e-9


@pytest.mark.parametrize("scale", [1e-3, 0.25, 5.0, 1e4])
def test_minimized_loss_does_not_depend_on_scale(scale):
    """Scaling the rows by c scales the best temperature by c squared and leaves the entanglement."""
    z, y = batch()
    plain, scaled = entanglement(z, y), entanglement(z * scale, y)

    assert scaled.value == pytest.approx(plain.value, rel=1e-6)
    assert scaled.temperature == pytest.approx(plain.temperature * scale**2, rel=1e-3)


def test_gradient_at_the_minimizer_is_the_gradient_of_the_minimum():
    """Envelope theorem: holding T constant gives the derivative of min over T."""
    z, y = batch(12)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows = z.clone().requires_grad_()
    soft_nearest_neighbor_loss(rows, y, temperature=minimize_temperature(z, y).temperature).backward()

    h = 1e-5
    ahead, behind = (minimize_temperature(z + s * direction, y).value for s in (h, -h))
    assert float((rows.grad * direction).sum()) == pytest.approx((ahead - behind) / (2 * h), rel=1e-4)


def test_entanglement_is_near_one_for_random_labels_and_near_zero_for_clusters():
    """The ratio spans 0 to 1, and both ends report that the minimiser sits at the end of its range."""
    z, y = batch(200, 4, 2)
    shuffled = y[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    mixed, apart = entanglement(z, shuffled), entanglement(torch.stack([y, -y], 1) + 0.01 * z[:, :2], y)

    assert mixed.ratio > 0.97
    assert apart.ratio < 0.01
    assert apart.at_bound


@pytest.mark.parametrize(
    ("places", "y", "end"),
    [
        pytest.param([0.0, 0.1, 5.0, 5.1], [0, 0, 1, 1], 1e-3, id="fully apart"),
        pytest.param([0.0, 1.0, 2.0005, 3.0005], [0, 0, 1, 1], 1e-3, id="apart by less than can be told"),
        pytest.param([0.0, 0.1, 5.0, 5.1], [0, 1, 0, 1], 1e3, id="every row is farther from its class than others"),
    ],
)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_search_ends_a_thousand_times_below_and_above_the_median_distance(size, places, y, end):
    """Where the loss has not yet come to 0, or to chance, it would go on falling beyond."""
    z = size * torch.tensor(places, dtype=torch.float64).unsqueeze(1)
    least = minimize_temperature(z, torch.tensor(y))

    distances = [distance(a, b, "squared_euclidean") for i, a in enumerate(z.tolist()) for b in z.tolist()[:i]]
    expected = end * np.quantile(distances, 0.5, method="lower")
    assert least.temperature == pytest.approx(expected, rel=1e-9)
    assert least.value == pytest.approx(looped_loss(z, torch.tensor(y), expected, "squared_euclidean"), rel=1e-9)
    assert least.at_bound


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("share", [1.3e-3, 1e3 / 1.3], ids=["lower", "upper"])
def test_a_minimum_just_inside_the_range_is_not_at_its_end(share, size):
    """Of some rows, beside others that are each of a class of its own: they set the median, and count for nothing."""
    z, y = batch(24, scale=size)
    alone = minimize_temperature(z, y)
    far = math.sqrt(1e6 * alone.temperature) * torch.ones(60, 1, dtype=torch.float64)
    others = math.sqrt(alone.temperature / share / 2) * torch.eye(60, dtype=torch.float64)
    beside = torch.block_diag(z, torch.cat([far, others], dim=1))

    found = minimize_temperature(beside, torch.cat([y, 10 + torch.arange(60)]))

    assert found.temperature == pytest.approx(alone.temperature, rel=1e-6)
    assert found.value == pytest.approx(alone.value, rel=1e-9)
    assert not found.at_bound


def test_where_most_pairs_are_copies_the_search_ends_a_thousand_times_below_the_mean_distance():
    """Five rows at 0 and two of another class at 1: 20 of the 42 pairs are 1 apart."""
    least = minimize_temperature(torch.tensor([[0.0]] * 5 + [[1.0]] * 2), torch.tensor([0] * 5 + [1] * 2))

    assert least.temperature == pytest.approx(1e-3 * 20 / 42, rel=1e-9)
    assert least.at_bound


def test_a_valley_is_found_though_the_loss_falls_again_behind_it():
    """Towards chance, at the end of the range: a grid of few temperatures steps over the valley and ends there."""
    z = torch.tensor([9.9, 0.1, 3.1, 0.9, 0.2, 1.3, 0.7, 0.4], dtype=torch.float64).unsqueeze(1)
    y = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1])
    scan = [
        float(soft_nearest_neighbor_loss(z, y, temperature=10 ** (e / 50), metric="squared_euclidean"))
        for e in range(-100, 151)
    ]
    valley = int(np.argmin(scan))
    assert scan[-1] < max(scan[valley:])

    found = minimize_temperature(z, y)

    assert (found.value, found.at_bound) == (pytest.approx(scan[valley], abs=1e-4), False)


@pytest.mark.parametrize("seed", range(20))
def test_at_the_minimizer_the_loss_is_flat_in_the_temperature(seed):
    """To more digits than its value shows."""
    z, y = batch(seed=seed)
    least = minimize_temperature(z, y)
    t = torch.tensor(least.temperature, dtype=torch.float64, requires_grad=True)
    soft_nearest_neighbor_loss(z, y, temperature=t).backward()

    assert not least.at_bound
    assert abs(float(t.grad) * least.temperature) < 1e-7


def test_copies_that_are_most_pairs_do_not_set_the_temperature():
    """Their distance of 0 is the median; what scales with the other rows must still be found."""
    z, y = batch(12)
    z[3:] = z[3]
    plain, scaled = minimize_temperature(z, y), minimize_temperature(z * 10, y)

    assert scaled.temperature == pytest.approx(plain.temperature * 100, rel=1e-3)


@pytest.mark.parametrize("case", ["nobody has a partner", "all rows equal"])
def test_entanglement_is_defined_where_temperature_decides_nothing(case):
    """Without partners the value is 0, with equal rows it is chance; neither is NaN."""
    z, y = CASES[case]
    found = entanglement(z, y)

    assert (found.value, found.temperature, found.at_bound) == (pytest.approx(found.chance), 1.0, False)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_fewer_than_two_rows_cannot_be_entangled(num_rows):
    """Nothing to search a temperature among."""
    z, y = batch()
    found = entanglement(z[:num_rows], y[:num_rows])

    assert (found.value, found.temperature, found.at_bound, found.valid_rows) == (0.0, 1.0, False, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_without_rows_costs_nothing(metric):
    """As one in which nobody has a partner."""
    z = torch.zeros(0, 5, requires_grad=True)

    loss = soft_nearest_neighbor_loss(z, torch.zeros(0, dtype=torch.long), temperature=1.0, metric=metric)
    loss.backward()

    assert (loss.item(), z.grad.shape) == (0.0, (0, 5))


def test_entanglement_counts_valid_rows():
    """Singletons are dropped and the count says so."""
    z, y = CASES["singletons among pairs"]

    assert entanglement(z, y).valid_rows == 4


def test_entanglement_between_tells_equal_sets_from_distant_ones():
    """Two samples of one distribution are mixed; a shifted one stands apart."""
    a, b = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0))

    assert entanglement_between(a, b).ratio > 0.95
    assert entanglement_between(a, b + 10).ratio < 0.01


@pytest.mark.parametrize("metric", METRICS)
def test_entanglement_between_is_that_of_the_rows_together(metric):
    """In the metric asked for and in float64, of two sizes and shapes of images."""
    a, b = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)), batch(9, 6, dtype=torch.float32)[0]
    together = torch.cat([a.flatten(1), b]).double()

    expected = entanglement(together, torch.tensor([0] * 5 + [1] * 9), metric=metric)
    assert entanglement_between(a, b.unflatten(1, (3, 2)), metric=metric) == expected


@pytest.mark.parametrize(("a", "b"), [((3, 2, 3), (4, 7)), ((3, 2, 3), (4,)), ((3, 1), (4,)), ((3,), (4, 1))])
def test_entanglement_between_wants_rows_of_one_width(a, b):
    """Or nothing could be told of how they lie to each other; numbers alone are no rows."""
    shapes = re.escape(f"a, b: are {a} and {b}; they must be")
    with pytest.raises(InvalidInputError, match=rf"{shapes} .*rows of equally many numbers"):
        entanglement_between(torch.zeros(a), torch.zeros(b))


def test_one_class_has_no_ratio():
    """Its value and its chance are both 0."""
    z, y = CASES["one wide class"]

    assert np.isnan(entanglement(z, y).ratio)


@pytest.mark.parametrize("metric", METRICS)
def test_training_temperature_stays_at_the_minimizer(metric):
    """While the rows drift by a factor of 3, one Newton step per batch stays within 3 % of the minimum."""
    snnl = LayeredSnnl(["a"], metric=metric)
    for step in range(40):
        z, y = batch(96, 6, 3, scale=3 ** (step / 40), seed=step)
        value = float(snnl({"a": z}, y)["a"])

        assert value == pytest.approx(minimize_temperature(z, y, metric=metric).value, rel=0.03)


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_training_temperature_recovers_from_a_bad_start(factor):
    """Two orders of magnitude off, clipped steps find the way back."""
    z, y = batch(96, 6, 3)
    best = minimize_temperature(z, y)
    snnl = LayeredSnnl(["a"], metric="squared_euclidean")
    snnl.temperature.fill_(best.temperature * factor)

    for _ in range(20):
        snnl({"a": z}, y)

    assert snnl.temperatures()["a"] == pytest.approx(best.temperature, rel=1e-3)


@pytest.mark.parametrize("metric", ["squared_euclidean", "cosine"])
def test_layers_have_their_own_temperatures_and_the_gradient_of_the_plain_loss(metric):
    """Each layer's term equals the plain loss at its own temperature, gradient included, whatever it weighs."""
    z, y = batch(48)
    hidden = {"a": z.clone().requires_grad_(), "b": (z[:, :3] * 7).requires_grad_()}
    snnl = LayeredSnnl(["a", "b"], metric=metric)
    losses = snnl(hidden, y)
    weights = {"a": 1.0, "b": -2.0}
    sum(weight * losses[name] for name, weight in weights.items()).backward()

    for name, rows in hidden.items():
        again = rows.detach().clone().requires_grad_()
        expected = soft_nearest_neighbor_loss(again, y, temperature=snnl.temperatures()[name], metric=metric)
        (weights[name] * expected).backward()
        assert float(losses[name].detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert torch.allclose(rows.grad, again.grad, rtol=1e-9)
    assert snnl.temperatures()["a"] != snnl.temperatures()["b"]


def test_a_fixed_temperature_does_not_move():
    """The same one, and the one asked for, on every batch."""
    z, y = batch()
    snnl = LayeredSnnl(["a"], temperature="fixed", fixed_temperature=3.0, metric="squared_euclidean")

    value = snnl({"a": z}, y)["a"]

    assert snnl.temperatures() == {"a": 3.0}
    assert float(value) == pytest.approx(looped_loss(z, y, 3.0, "squared_euclidean"), rel=1e-9)


def test_a_first_batch_without_partners_costs_nothing():
    """The temperature is searched in the next one."""
    z, y = batch()
    snnl = LayeredSnnl(["a"])
    rows = z[:4].clone().requires_grad_()

    value = snnl({"a": rows}, torch.arange(4))["a"]
    value.backward()

    assert (float(value.detach()), rows.grad.abs().max().item()) == (0.0, 0.0)
    assert float(snnl({"a": z}, y)["a"]) == pytest.approx(entanglement(z, y, metric="cosine").value)


def test_a_batch_without_partners_leaves_the_temperature():
    """Nothing can be learnt from it, and nothing may break."""
    z, y = batch()
    snnl = LayeredSnnl(["a"])
    snnl({"a": z}, y)
    before = snnl.temperatures()

    value = snnl({"a": z[:4]}, torch.arange(4))["a"]

    assert (float(value), snnl.temperatures()) == (0.0, before)
