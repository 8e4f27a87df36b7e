"""Class masses and forms against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softkin import mass


def loop_mass(z, bank, labels, weights, num_classes, temperature, metric):
    """The definition, one pair at a time."""
    out = np.full((len(z), num_classes), -math.inf)
    for b, query in enumerate(z.astype(float)):
        terms = [[] for _ in range(num_classes)]
        for row, label, w in zip(bank.astype(float), labels, weights, strict=True):
            if metric == "cosine":
                d = 1 - query @ row / (np.linalg.norm(query) * np.linalg.norm(row))
            else:
                d = float(((query - row) ** 2).sum())
            terms[label].append(math.log(w) - d / temperature)
        for j, t in enumerate(terms):
            if t:
                out[b, j] = max(t) + math.log(sum(math.exp(v - max(t)) for v in t))
    return out


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 100.0])
def test_class_mass_is_the_definition(metric, temperature):
    """logsumexp over the bank rows of the class of (log w - d / T), in float64 whatever the representations are in."""
    rng = np.random.default_rng(0)
    z, bank = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=(23, 7)).astype(np.float32)
    labels, weights = rng.integers(0, 3, 23), rng.uniform(0.1, 9, 23)

    found = mass.class_mass(z, bank, labels, num_classes=4, temperature=temperature, metric=metric, weights_N=weights)

    np.testing.assert_allclose(found, loop_mass(z, bank, labels, weights, 4, temperature, metric), rtol=1e-9)


def test_a_class_without_rows_has_no_mass():
    """-inf, not NaN."""
    found = mass.class_mass(
        np.ones((1, 2)), np.ones((1, 2)), np.array([0]), num_classes=2, temperature=1.0, metric="squared_euclidean"
    )

    assert found.tolist() == [[0.0, -math.inf]]


def test_a_zero_representation_is_at_distance_one_from_everything():
    """Dead units give a zero row; cosine treats it as orthogonal to all rows."""
    assert mass.distances(np.zeros((1, 3)), np.eye(3), "cosine").tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("metric", mass.METRICS)
def test_no_row_is_nearer_than_itself(metric):
    """Distances are at least 0 where rounding would make them less."""
    z = np.random.default_rng(2).normal(size=(100, 7))

    assert (mass.distances(z, z, metric) >= 0).all()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None)
def test_any_sharding_merges_to_the_same_masses(n, shards, seed):
    """Shards add exactly, whatever goes where, empty shards included."""
    rng = np.random.default_rng(seed)
    z, bank, labels = rng.normal(size=(3, 4)), rng.normal(size=(n, 4)), rng.integers(0, 2, n)
    where = rng.integers(0, shards, n)

    def masses(keep):
        return mass.class_mass(z, bank[keep], labels[keep], num_classes=2, temperature=0.5, metric="squared_euclidean")

    merged = mass.merge_masses(np.stack([masses(where == s) for s in range(shards)]))

    np.testing.assert_allclose(merged, masses(np.ones(n, bool)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 1, 4), (1, 2, 4), (3, 2, 1), (1, 1, 1)])
def test_shards_merge_number_by_number_whatever_the_shape(shape):
    """A single layer, row or class is an axis like any other."""
    masses = np.random.default_rng(1).normal(size=(2, *shape))

    found = mass.merge_masses(masses)

    assert found.shape == shape
    for at in np.ndindex(*shape):
        assert found[at] == pytest.approx(math.log(math.exp(masses[0][at]) + math.exp(masses[1][at])), rel=1e-12)


def test_posterior_is_the_soft_nearest_neighbour_loss_of_the_row():
    """Two rows at distances 1 and 3 with T = 1: -log(e^-1 / (e^-1 + e^-3)) for the near class."""
    masses = np.array([[[-1.0, -3.0]]])

    found = mass.posterior(masses, np.ones(1))

    expected = math.log(math.exp(-1) + math.exp(-3))
    np.testing.assert_allclose(found, [[expected + 1.0, expected + 3.0]])


@pytest.mark.parametrize("gap", [0.0, 1e-3, 1.0, 8.0, 15.0, 16.5, 30.0, 700.0])
@pytest.mark.parametrize("largest", [-4000.0, 0.0, 3.0])
def test_posterior_keeps_its_digits_until_other_classes_have_next_to_nothing(gap, largest):
    """Deep in a class it is about e^-gap, wherever the masses lie, not what sums round to; from e^-16 down it is 0."""
    masses = np.array([[[largest - gap, largest, largest - gap - 1]]])
    others = math.exp(-gap) + math.exp(-gap - 1)
    near = math.log1p(others) if others >= 2**-23 else 0.0

    found = mass.posterior(masses, np.ones(1))

    np.testing.assert_allclose(found, [[near + gap, near, near + gap + 1]], rtol=1e-10)
    assert (near == 0) == (gap > 16.3)


def test_density_divides_by_the_class_weight():
    """A class of n equal rows is as dense as one of them."""
    masses = np.array([[[math.log(5) - 2.0, -2.0]]])

    np.testing.assert_allclose(mass.density(masses, np.array([5.0, 1.0]), np.ones(1)), [[2.0, 2.0]])


def test_layers_add_with_their_weights():
    """Both forms are weighted sums over layers."""
    rng = np.random.default_rng(1)
    masses, w = rng.normal(size=(4, 3, 5)), np.array([1.0, 0.5, 2.0])

    for form in (mass.posterior, lambda m, v: mass.density(m, np.ones(5), v)):
        parts = sum(w[i] * form(masses[:, i : i + 1], np.ones(1)) for i in range(3))
        np.testing.assert_allclose(form(masses, w), parts)


def test_energy_is_minus_logsumexp_of_the_logits():
    """Large logits do not overflow."""
    np.testing.assert_allclose(mass.energy(np.array([[1000.0, 1000.0]])), [-1000.0 - math.log(2)])


def test_what_the_scorer_gives_in_single_precision_is_computed_in_double():
    """As the same numbers in float64, to the last digits: p-values hang on the order of scores."""
    masses = np.random.default_rng(0).normal(-40, 20, (5, 3, 4)).astype(np.float32)
    weights = np.array([1.0, 0.3, 0.7], np.float32)
    share = np.array([1.0, 2.0, 3.0, 4.0], np.float32)

    for function, *rest in (
        (mass.merge_masses,),
        (mass.posterior, weights),
        (mass.density, share, weights),
        (lambda m: mass.energy(m[:, 0]),),
    ):
        found, expected = (function(masses.astype(t), *(a.astype(t) for a in rest)) for t in (np.float32, np.float64))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-19, 1.0, 1e19, 1e30, 2e38])
def test_rows_of_any_size_get_unit_norm(size):
    """Their squares may lie outside the range of float32; a zero row stays zero, and none disturbs another."""
    z = np.array([[size, -size, size], [0, -size, -size], [0, 0, 0], [3, 4, 0]], np.float32)

    found = mass.unit_rows(z)

    expected = [[3**-0.5, -(3**-0.5), 3**-0.5], [0, -(0.5**0.5), -(0.5**0.5)], [0, 0, 0], [0.6, 0.8, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
