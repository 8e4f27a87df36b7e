"""The onnxruntime scorer computes the class masses of the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from scorer_cases import RELATIVE, ROUNDING, make, packed, start, terms
from softkin import mass
from softkin.bank import LARGE_TILE_ROWS, PRECISIONS
from softkin.precision import reduce_precision

CASES = {
    "one-row classes": [1, 1],
    "very unequal": [1, 700, 3, 64, 65, 128],
    "tile-sized": [64, 64, 64],
    "many classes": [3] * 500,
    "several folds": [40 * LARGE_TILE_ROWS, 10],
    "one tile for each of many": [20] * 200,
    "few rows, many tiles": [300, 7, 1, 1, 90, 2, 2, 31],
}
TILES = {"one tile for each of many": 20, "few rows, many tiles": 2}
"""Rows of a small tile, where they are not chosen by the bank."""


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("factor", [1e-3, 1e-1, 1.0, 1e3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_masses_equal_the_reference(tmp_path, metric, factor, case, weighted):
    """Any temperature, metric, class sizes and weights: log masses agree to the stated rounding."""
    dims = {"a": 16, "b": 5}
    z, labels, weights = make(CASES[case], dims, metric, 0.5, weighted)
    query = {n: np.concatenate([v[:4], v[-3:]]) for n, v in z.items()}
    temperature = {n: factor * float(np.median(mass.distances(query[n], v, metric))) for n, v in z.items()}
    bank = packed(z, labels, temperature, metric, weights, TILES.get(case))
    scorer = start(tmp_path, bank, dims, chunk_rows=1024)

    found = scorer.run(np.concatenate(list(query.values()), axis=1)).masses

    expected = np.stack(
        [
            mass.class_mass(
                query[n],
                v,
                labels,
                num_classes=len(CASES[case]),
                temperature=temperature[n],
                metric=metric,
                weights_N=weights,
            )
            for n, v in z.items()
        ],
        axis=1,
    )
    rounding = np.array([ROUNDING * terms(query[n], v, metric) / temperature[n] for n, v in z.items()])
    assert (np.abs(found - expected) <= RELATIVE * np.maximum(np.abs(expected), 1.0) + rounding[None, :, None]).all()


@pytest.mark.parametrize("metric", mass.METRICS)
def test_the_nearest_rows_of_every_layer_are_its_own(tmp_path, metric):
    """What is near in one layer need not be so in another, and each has its own temperature."""
    dims, temperatures = {"a": 16, "b": 5, "c": 3}, {"a": 0.3, "b": 0.7, "c": 1.1}
    z, labels, _ = make([60, 7, 30], dims, metric, 0.5, False)
    query = {n: v[:4] + np.float32(0.1) for n, v in z.items()}
    if metric == "cosine":
        query = {n: mass.unit_rows(q).astype(np.float32) for n, q in query.items()}
    bank = packed(z, labels, temperatures, metric, None)

    _, nearest = start(tmp_path, bank, dims).run_with_nearest(np.concatenate(list(query.values()), axis=1), 5)

    distances = [mass.distances(query[n], v, metric) for n, v in z.items()]
    expected = np.stack([d.argsort(axis=1)[:, :5] for d in distances], axis=1)
    assert (bank.ids[0, nearest.rows] == expected).all()
    found = [np.sort(d, axis=1)[:, :5] / -t for d, t in zip(distances, temperatures.values(), strict=True)]
    np.testing.assert_allclose(nearest.contributions, np.stack(found, axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("at", [0, 1, 63, 69])
def test_a_row_far_from_all_others_does_not_blur_their_mass(tmp_path, precision, at):
    """Wherever it stands in its tile, of its class or another: their distances are much smaller than its own."""
    z, labels, _ = make([70, 70], {"a": 16}, "squared_euclidean", 0.5, False)
    query = z["a"][:9].copy()
    z["a"][np.flatnonzero(labels == 0)[at]] = 3e4 if precision == "float16" else 1e6
    temperature = float(np.median(mass.distances(query, z["a"], "squared_euclidean")))
    bank = reduce_precision(packed(z, labels, {"a": temperature}, "squared_euclidean", None), precision)
    rows = bank.layers["a"].representations(bank.labels >= 0)

    found = start(tmp_path, bank, {"a": 16}).run(query).masses[:, 0]

    expected = mass.class_mass(
        query, rows, np.sort(labels), num_classes=2, temperature=temperature, metric="squared_euclidean"
    )
    rounded_queries = 0.05 if precision == "int8" else 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounded_queries)


@pytest.mark.parametrize("inverse_temperature", [77, 80, 81])
def test_thousands_of_equal_rows_at_the_edge_of_the_exponential_do_not_overflow(tmp_path, inverse_temperature):
    """float32 holds exp(80), but not 8,000 times that: a query equal to them all would look like an overflow."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.tile(rng.normal(size=(1, 8)), (8000, 1)), rng.normal(size=(50, 8))])
    z, labels = mass.unit_rows(rows.astype(np.float32)), np.repeat([0, 1], [8000, 50])
    bank = packed({"a": z}, labels, {"a": 1 / inverse_temperature}, "cosine", None)

    found = start(tmp_path, bank, {"a": 8}).run(z[:1]).masses[:, 0]

    expected = mass.class_mass(z[:1], z, labels, num_classes=2, temperature=1 / inverse_temperature, metric="cosine")
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("weight", [1e-25, 1e25])
def test_weights_near_the_ends_of_the_exponential_neither_overflow_nor_vanish(tmp_path, weight):
    """1 / T alone is far from them; a weight moves every logit by its logarithm."""
    z, labels, _ = make([5, 300], {"a": 8}, "cosine", 0.5, False)
    query, weights = np.concatenate([z["a"][:3], -z["a"][:3]]), np.full(len(labels), weight, np.float32)
    bank = packed(z, labels, {"a": 1 / 60}, "cosine", weights)

    found = start(tmp_path, bank, {"a": 8}).run(query).masses[:, 0]

    expected = mass.class_mass(
        query, z["a"], labels, num_classes=2, temperature=1 / 60, metric="cosine", weights_N=weights
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
