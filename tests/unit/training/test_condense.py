"""Condensed banks: what the prototypes stand for, and that scores survive the condensing."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softkin import mass
from softkin.errors import DataError
from softkin_training.condense import condense

pytestmark = pytest.mark.training


def clustered(rng, counts, dim=8, clumps=6, spread=0.15):
    """Rows of several classes, each class made of a few clumps; labels shuffled, ids far from row numbers."""
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    centers = rng.normal(size=(len(counts), clumps, dim))
    z = centers[labels, rng.integers(0, clumps, len(labels))] + spread * rng.normal(size=(len(labels), dim))
    return z.astype(np.float32), labels, rng.permutation(10 * len(labels))[: len(labels)]


def unit(z):
    """Rows over their norms, by loop."""
    return np.array([row / np.linalg.norm(row) for row in np.asarray(z, np.float64)])


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("ratio", [1, 1.5, 4, 7.3, 20, 1e6])
def test_weights_sum_to_the_rows_of_each_class(metric, ratio):
    """So the density form divides by the same n_j as on the full bank."""
    counts = [50, 3, 1, 90]
    z, labels, ids = clustered(np.random.default_rng(0), counts)

    found = condense(z, labels, ids, ratio=ratio, metric=metric, seed=0)

    assert [found.weights[found.labels == j].sum() for j in range(4)] == counts
    assert found.weights.min() >= 1


@pytest.mark.parametrize("ratio", [1, 1.5, 4, 7.3, 20, 1e6])
def test_every_layer_gets_the_same_prototypes_per_class(ratio):
    """Layers share one array of labels, so the counts may depend on nothing but labels and ratio."""
    rng = np.random.default_rng(0)
    counts = [50, 3, 1, 90]
    z, labels, ids = clustered(rng, counts)
    layers = [z, np.zeros_like(z), rng.normal(size=(len(z), 2)).astype(np.float32)]

    found = [condense(layer, labels, ids, ratio=ratio, metric="cosine", seed=0) for layer in layers]

    expected = np.concatenate([[j] * min(n, max(1, round(n / ratio))) for j, n in enumerate(counts)])
    for layer in found:
        assert layer.labels.tolist() == expected.tolist()


def test_the_arrays_have_the_types_of_a_bank():
    """float32 rows and weights, int64 labels and ids, one of each per prototype; the input stays as it was."""
    z, labels, ids = clustered(np.random.default_rng(0), [30, 30])
    before = z.copy()

    found = condense(z.astype(np.float64), labels.astype(np.int32), ids, ratio=10, metric="cosine", seed=0)

    assert (found.rows.dtype, found.rows.shape) == (np.float32, (6, 8))
    assert [a.dtype for a in (found.labels, found.weights, found.ids)] == [np.int64, np.float32, np.int64]
    assert found.labels.shape == found.weights.shape == found.ids.shape == (6,)
    assert (z == before).all()


@pytest.mark.parametrize("metric", mass.METRICS)
def test_ratio_1_keeps_the_rows(metric):
    """Sorted by class, in their order, each standing for itself."""
    z, labels, ids = clustered(np.random.default_rng(0), [5, 9, 7])

    found = condense(z, labels, ids, ratio=1, metric=metric, seed=0)

    order = np.argsort(labels, kind="stable")
    np.testing.assert_allclose(found.rows, (unit(z) if metric == "cosine" else z)[order], rtol=1e-6)
    assert found.ids.tolist() == ids[order].tolist()
    assert found.labels.tolist() == labels[order].tolist()
    assert (found.weights == 1).all()


def test_prototypes_are_the_means_of_well_separated_clumps():
    """Three clumps of known size: their means, their sizes, and the member nearest to each mean, found by loop."""
    rng = np.random.default_rng(0)
    sizes = [5, 11, 20]
    clumps = [100.0 * i + rng.normal(size=(n, 4)) for i, n in enumerate(sizes)]
    ids = [1000 * i + np.arange(n) for i, n in enumerate(sizes)]
    z, all_ids = np.concatenate(clumps), np.concatenate(ids)

    found = condense(z, np.zeros(36, int), all_ids, ratio=12, metric="squared_euclidean", seed=0)

    order = np.argsort(found.rows[:, 0])
    assert found.weights[order].tolist() == sizes
    for m, rows, row_ids in zip(order, clumps, ids, strict=True):
        mean = sum(rows) / len(rows)
        np.testing.assert_allclose(found.rows[m], mean, rtol=1e-6, atol=1e-5)
        assert found.ids[m] == min(zip(((rows - mean) ** 2).sum(axis=1), row_ids, strict=True))[1]


def test_cosine_prototypes_are_mean_directions_of_unit_norm():
    """The lengths of rows do not matter, and the length of the mean is dropped."""
    rng = np.random.default_rng(0)
    directions = np.repeat(np.eye(3), 10, axis=0) + 0.05 * rng.normal(size=(30, 3))
    z = directions * rng.uniform(0.01, 100, size=(30, 1))

    found = condense(z, np.zeros(30, int), np.arange(30), ratio=10, metric="cosine", seed=0)

    for axis, m in enumerate(found.rows.argmax(axis=0)):
        mean = unit(directions[10 * axis : 10 * axis + 10]).mean(axis=0)
        np.testing.assert_allclose(found.rows[m], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)
        assert found.ids[m] // 10 == axis


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(1, 30),
    st.integers(1, 5),
    st.sampled_from(mass.METRICS),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_ids_are_unique_rows_of_the_right_class_whatever_repeats(counts, ratio, values, metric, seed):
    """Rows drawn from a handful of values, zero among them: fewer distinct rows than prototypes warn nobody."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    z = rng.integers(0, values, size=(len(labels), 2)).astype(np.float32)
    ids = rng.permutation(1000)[: len(labels)]

    found = condense(z, labels, ids, ratio=ratio, metric=metric, seed=seed)

    assert len(set(found.ids.tolist())) == len(found.ids)
    label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    assert [label_of[i] for i in found.ids.tolist()] == found.labels.tolist()
    assert np.isfinite(found.rows).all()
    assert np.bincount(found.labels, found.weights).tolist() == counts


@pytest.mark.parametrize("metric", mass.METRICS)
def test_copies_of_one_row_condense_to_copies_of_it(metric):
    """The mass stays what it was: the copies' weights add."""
    z = np.tile(np.array([[0.6, 0.8]], np.float32), (40, 1))

    found = condense(z, np.zeros(40, int), np.arange(40), ratio=4, metric=metric, seed=0)

    np.testing.assert_allclose(found.rows, z[:10], rtol=1e-6)
    assert found.weights.sum() == 40
    assert len(set(found.ids.tolist())) == 10


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("copies_first", [True, False])
def test_distinct_rows_all_survive_where_there_are_prototypes_enough(metric, copies_first):
    """30 copies of one row beside ten others, 20 prototypes: the copies share ten, the others keep one each."""
    angles = np.linspace(0.2, 1.4, 10)
    others = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    copies = np.tile([[1.0, 0.0]], (30, 1))
    z = np.concatenate([copies, others] if copies_first else [others, copies])

    found = condense(z, np.zeros(40, int), np.arange(40), ratio=2, metric=metric, seed=0)

    assert found.weights.sum() == 40
    for row in others:
        own = np.abs(found.rows - row).sum(axis=1) < 1e-6
        assert found.weights[own].tolist() == [1]


@pytest.mark.parametrize("metric", mass.METRICS)
def test_a_class_of_one_row_keeps_it(metric):
    """However large the ratio."""
    z, labels, ids = clustered(np.random.default_rng(0), [1, 40])

    found = condense(z, labels, ids, ratio=1000, metric=metric, seed=0)

    assert found.ids[0] == ids[labels == 0][0]
    np.testing.assert_allclose(found.rows[0], unit(z[labels == 0])[0] if metric == "cosine" else z[labels == 0][0])
    assert found.weights.tolist() == [1, 40]


def test_zero_rows_make_a_zero_prototype_in_cosine():
    """Dead units: orthogonal to everything, before and after, and never NaN."""
    z = np.concatenate([np.zeros((10, 3)), np.tile([[0.0, 2.0, 0.0]], (10, 1))])

    found = condense(z, np.zeros(20, int), np.arange(20), ratio=10, metric="cosine", seed=0)

    assert sorted(found.rows.tolist()) == [[0, 0, 0], [0, 1, 0]]
    assert found.weights.tolist() == [10, 10]


def test_opposite_rows_have_no_common_direction():
    """Their mean is rounding: a zero prototype, at distance 1 from everything, which is also their mean distance."""
    z = np.random.default_rng(0).normal(size=(50, 64))
    z = np.concatenate([z, -z])

    found = condense(z, np.zeros(100, int), np.arange(100), ratio=100, metric="cosine", seed=0)

    assert (found.rows == 0).all()
    assert found.weights.tolist() == [100]


def test_rows_that_are_nearly_opposite_have_a_common_direction():
    """However short their mean is, it is no rounding."""
    z = np.array([[1.0, 1e-4], [-1.0, 1e-4]])

    found = condense(z, np.zeros(2, int), np.arange(2), ratio=2, metric="cosine", seed=0)

    np.testing.assert_allclose(found.rows, [[0.0, 1.0]], atol=1e-3)


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_the_size_of_the_numbers_does_not_matter(metric, size):
    """Squares that leave float32 neither warn nor blur the partition."""
    z, labels, ids = clustered(np.random.default_rng(0), [40, 40])
    z[:, -1] = 0  # a dead unit has no size

    found = condense(z * np.float32(size), labels, ids, ratio=8, metric=metric, seed=0)

    expected = condense(z, labels, ids, ratio=8, metric=metric, seed=0)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.weights.tolist() == expected.weights.tolist()
    rows = found.rows if metric == "cosine" else found.rows / np.float32(size)
    np.testing.assert_allclose(rows, expected.rows, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_everything():
    """Twice the same with one seed; another start finds other prototypes."""
    rng = np.random.default_rng(0)
    z, labels, ids = rng.normal(size=(300, 8)), rng.integers(0, 2, 300), np.arange(300)

    a, b, other = (condense(z, labels, ids, ratio=10, metric="cosine", seed=s) for s in (3, 3, 4))

    for name in vars(a):
        assert (getattr(a, name) == getattr(b, name)).all(), name
    assert a.ids.tolist() != other.ids.tolist()


def test_a_class_condenses_the_same_with_and_without_the_others():
    """Its rows, ratio and seed are all that counts."""
    z, labels, ids = clustered(np.random.default_rng(0), [60, 60, 60])

    whole = condense(z, labels, ids, ratio=10, metric="cosine", seed=0)
    of_two = labels == 2
    alone = condense(z[of_two], labels[of_two], ids[of_two], ratio=10, metric="cosine", seed=0)

    assert whole.ids[whole.labels == 2].tolist() == alone.ids.tolist()
    assert (whole.rows[whole.labels == 2] == alone.rows).all()


@pytest.mark.parametrize("metric", mass.METRICS)
def test_masses_stay_closer_to_the_full_bank_than_those_of_a_random_subsample(metric):
    """Rows in tight clumps, 20 times fewer: a prototype per clump loses little, chance misses clumps."""
    rng = np.random.default_rng(0)
    z, labels, ids = clustered(rng, [400, 400, 400], clumps=20, spread=0.05)
    queries = z[rng.permutation(len(z))[:50]] + 0.05 * rng.normal(size=(50, 8)).astype(np.float32)
    temperature = 0.05

    def masses(rows, row_labels, weights):
        return mass.class_mass(
            queries, rows, row_labels, num_classes=3, temperature=temperature, metric=metric, weights_N=weights
        )

    full = masses(z, labels, np.ones(len(z)))
    found = condense(z, labels, ids, ratio=20, metric=metric, seed=0)
    condensed = masses(found.rows, found.labels, found.weights)
    random_errors = []
    for _ in range(5):
        keep = np.concatenate([rng.permutation(np.flatnonzero(labels == j))[:20] for j in range(3)])
        random_errors.append(np.abs(masses(z[keep], labels[keep], np.full(60, 20.0)) - full).mean())

    assert np.abs(condensed - full).mean() < 0.5 * min(random_errors)


@pytest.mark.parametrize("ratio", [0, 0.99, -3, math.nan, math.inf])
def test_a_ratio_that_does_not_shrink_is_refused(ratio):
    """Named, with what is allowed."""
    with pytest.raises(DataError, match=r"ratio is .*at least 1 and finite"):
        condense(np.ones((2, 2)), np.zeros(2, int), np.arange(2), ratio=ratio, metric="cosine", seed=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
def test_a_value_that_is_not_finite_names_its_example(value):
    """By id; what float32 cannot hold counts too."""
    z = np.ones((3, 2))
    z[1, 1] = value

    with pytest.raises(DataError, match="example 71 has a value that is not finite"):
        condense(z, np.zeros(3, int), np.array([70, 71, 72]), ratio=2, metric="squared_euclidean", seed=0)


@pytest.mark.parametrize(
    ("z", "labels", "ids", "message"),
    [
        (np.ones((0, 2)), [], [], r"representations are \(0, 2\)"),
        (np.ones((2, 0)), [0, 0], [0, 1], r"representations are \(2, 0\)"),
        (np.ones(2), [0, 0], [0, 1], r"representations are \(2,\)"),
        (np.ones((2, 2)), [0], [0, 1], r"labels are \(1,\) and ids \(2,\) for 2 rows"),
        (np.ones((2, 2)), [0, 0], [[0], [1]], r"ids \(2, 1\) for 2 rows"),
        (np.ones((2, 2)), [0, -1], [8, 9], "example 9 has label -1"),
        (np.ones((3, 2)), [0, 1, 0], [7, 8, 8], "id 8 occurs twice"),
    ],
)
def test_arrays_that_disagree_are_refused(z, labels, ids, message):
    """Each fault with its own message."""
    with pytest.raises(DataError, match=message):
        condense(z, np.array(labels, int), np.array(ids, int), ratio=2, metric="cosine", seed=0)


def test_condensing_needs_no_torch():
    """Any ONNX classifier's bank can be condensed."""
    code = "import sys, softkin_training.condense; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
