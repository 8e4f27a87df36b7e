"""The scores of others against plain loops over their equations."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from softkin_training import baselines, fitted_baselines
from softkin_training.fitted_baselines import Mahalanobis, ViM, default_principal_dim, summed_distances, vim_origin
from softkin_training.network_head import FEATURES, find_head, with_features

pytestmark = pytest.mark.training


@pytest.fixture
def rng():
    """Fixed."""
    return np.random.default_rng(0)


def unit(v):
    """Rows of norm 1."""
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_scores_of_logits_follow_their_equations(rng):
    """Max softmax, max logit and GEN, row by row."""
    logits = (rng.normal(size=(6, 5)) * 4).astype(np.float32)

    for i, row in enumerate(logits.astype(float)):
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        assert baselines.max_softmax(logits)[i] == pytest.approx(-max(p))
        assert baselines.max_logit(logits)[i] == pytest.approx(-max(row))
        assert baselines.gen(logits)[i] == pytest.approx(sum((q * (1 - q)) ** 0.1 for q in p))
        assert baselines.gen(logits, classes=2)[i] == pytest.approx(sum((q * (1 - q)) ** 0.1 for q in sorted(p)[-2:]))


def test_gen_counts_the_hundred_largest_probabilities(rng):
    """Of more classes, as published, with its exponent of a tenth."""
    logits = rng.normal(size=(3, 300)).astype(np.float32)

    for i, row in enumerate(logits.astype(float)):
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        expected = sum((q * (1 - q)) ** 0.1 for q in sorted(p)[-100:])
        assert baselines.gen(logits)[i] == pytest.approx(expected, rel=1e-9)


def test_gen_still_tells_sure_rows_apart():
    """1 - p rounds to zero next to 1; taken from the other probabilities it does not."""
    found = baselines.gen(np.array([[40.0, 0.0, 0.0], [50.0, 0.0, 0.0], [90.0, 0.0, 0.0]], np.float32))

    assert found[0] > found[1] > found[2] > 0
    assert found[1] == pytest.approx((2 * math.exp(-50)) ** 0.1 + 2 * math.exp(-50) ** 0.1)


def test_max_softmax_still_tells_sure_rows_apart():
    """In single precision the probabilities of all of these are 1."""
    logits = np.array([[18.0, 0.0], [22.0, 0.0], [26.0, 0.0]], np.float32)

    np.testing.assert_allclose(1 + baselines.max_softmax(logits), np.exp([-18.0, -22.0, -26.0]), rtol=1e-2)


def test_nearest_finds_the_nearest_rows_in_order(rng, monkeypatch):
    """Against a sort; also in slices of few queries, of a bank in parts, and of fewer rows than neighbours."""
    z, bank = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(500, 4)).astype(np.float32)
    all_distances = np.linalg.norm(unit(z)[:, None] - unit(bank)[None], axis=2)

    for slices, parts in itertools.product((7, 1000, 2**23), (3, 130, 2**15)):
        monkeypatch.setattr(baselines, "DISTANCES", slices)
        monkeypatch.setattr(baselines, "BANK_ROWS", parts)
        distances, rows = baselines.nearest(z, bank, 5)
        np.testing.assert_array_equal(rows, np.argsort(all_distances, axis=1)[:, :5])
        np.testing.assert_allclose(distances, np.sort(all_distances, axis=1)[:, :5], rtol=1e-4, atol=1e-6)
    assert baselines.nearest(z, bank[:3], 5)[0].shape == (6, 3)
    assert baselines.nearest(z[:0], bank, 5)[0].shape == (0, 5)
    for k in range(1, 501):  # a selection that is off by one seldom shows
        expected = np.sort(all_distances, axis=1)[:, k - 1]
        np.testing.assert_allclose(baselines.kth_neighbor(z, bank, k=k), expected, rtol=1e-4, atol=1e-6)


def test_a_row_of_the_bank_is_at_no_distance_from_itself(rng):
    """Not at the root of a negative number, as rounding may have it."""
    bank = rng.normal(size=(200, 64)).astype(np.float32)

    distances, rows = baselines.nearest(bank, bank, 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(200))
    np.testing.assert_allclose(distances, 0.0, atol=1e-3)


def test_dknn_counts_neighbours_of_other_classes_over_layers(rng):
    """Against a loop over layers, rows and neighbours."""
    z = {n: rng.normal(size=(5, 3)).astype(np.float32) for n in "ab"}
    bank = {n: rng.normal(size=(40, 3)).astype(np.float32) for n in "ab"}
    labels = rng.integers(0, 3, 40)

    found = baselines.dknn_nonconformity(z, bank, labels, 3, k=7)

    for i in range(5):
        for j in range(3):
            count = 0
            for n in "ab":
                cos = [z[n][i] @ b / np.linalg.norm(z[n][i]) / np.linalg.norm(b) for b in bank[n]]
                count += sum(labels[r] != j for r in np.argsort(cos)[::-1][:7])
            assert found[i, j] == count


def test_neighbours_of_the_last_row_need_not_be_of_the_last_class():
    """Counts are for all rows and classes, seen or not."""
    found = baselines.other_labels(np.array([[1, 2], [0, 0]]), 4)

    np.testing.assert_array_equal(found, [[2, 1, 1, 2], [0, 2, 2, 2]])


def test_dknn_asks_75_neighbours_of_each_layer(rng):
    """As in the authors' code; of a smaller bank all rows."""
    z, bank = ({n: rng.normal(size=(m, 3)).astype(np.float32) for n in "ab"} for m in (4, 90))
    labels = rng.integers(0, 3, 90)

    found = baselines.dknn_nonconformity(z, bank, labels, 3)
    np.testing.assert_array_equal(found, baselines.dknn_nonconformity(z, bank, labels, 3, k=75))
    np.testing.assert_array_equal(found.sum(axis=1), 2 * 2 * 75)
    few = baselines.dknn_nonconformity(z, {n: rows[:10] for n, rows in bank.items()}, labels[:10], 3)
    np.testing.assert_array_equal(few, np.tile([2 * (labels[:10] != j).sum() for j in range(3)], (4, 1)))


def test_dknn_credibility_counts_calibration_rows_at_their_own_class(rng):
    """One less the largest p-value of any class, among the calibration rows' counts, which come in any order."""
    counts, true = rng.integers(0, 20, (6, 3)).astype(float), rng.integers(0, 20, 15).astype(float)

    found = baselines.dknn_credibility(counts, true)
    for i in range(6):
        p = [(1 + sum(a >= counts[i, j] for a in true)) / (15 + 1) for j in range(3)]
        assert found[i] == pytest.approx(1 - max(p))


def test_distances_of_layers_are_summed_in_units_of_typical_ones():
    """A layer without any distance counts as it is instead of dividing by zero."""
    found = summed_distances(np.array([[1.0, 2.0], [0.1, 0.3], [0.0, 5.0]]), np.array([2.0, 0.1, 0.0]))

    assert found == pytest.approx([0.5 + 1 + 0, 1 + 3 + 5])


def test_mahalanobis_is_the_distance_to_the_nearest_class(rng):
    """Against loops over classes with an explicit inverse."""
    z, labels = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)), rng.integers(0, 3, 60)
    x = rng.normal(size=(5, 4))

    means = [z[labels == j].mean(axis=0) for j in range(3)]
    covariance = sum(np.outer(row - means[j], row - means[j]) for row, j in zip(z, labels, strict=True)) / 60
    expected = [min((row - m) @ np.linalg.inv(covariance) @ (row - m) for m in means) for row in x]
    np.testing.assert_allclose(Mahalanobis.fit(z, labels).score(x), expected)


def test_mahalanobis_of_single_precision_is_computed_in_double(rng):
    """Rows far from the origin would lose the digits of their spread."""
    z, labels = (1000 + rng.normal(size=(3000, 4))).astype(np.float32), rng.integers(0, 3, 3000)

    expected = Mahalanobis.fit(z.astype(np.float64), labels).score(z.astype(np.float64)[:5])
    np.testing.assert_allclose(Mahalanobis.fit(z, labels).score(z[:5]), expected, rtol=1e-9)


@pytest.mark.parametrize("numbers", [1, 100, 1000000])
def test_mahalanobis_finds_the_nearest_of_many_classes_whatever_the_block(rng, monkeypatch, numbers):
    """Rows that lie nearly on a mean keep the digits of their distance, though all rows lie far from the origin."""
    monkeypatch.setattr(fitted_baselines, "BLOCK_NUMBERS", numbers)
    labels = np.repeat(np.arange(60), 3)
    z = 1000 + 10 * rng.normal(size=(60, 4))[labels] + rng.normal(size=(180, 4))
    fitted = Mahalanobis.fit(z, labels)
    x = np.concatenate([z[::7], fitted.means[::9] + 1e-3])

    expected = [min((row - mean) @ fitted.precision @ (row - mean) for mean in fitted.means) for row in x]
    np.testing.assert_allclose(fitted.score(x), expected, rtol=1e-9)
    assert fitted.score(x[:0]).shape == (0,)


def test_mahalanobis_holds_a_few_blocks_of_distances_and_not_all(rng):
    """Of every row to every class they would be gigabytes for thousands of classes."""
    fitted = Mahalanobis.fit(rng.normal(size=(3000, 8)), np.arange(3000) // 2)
    x = rng.normal(size=(10000, 8)).astype(np.float32)

    tracemalloc.start()
    fitted.score(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 4 * 8 * fitted_baselines.BLOCK_NUMBERS < 8 * len(x) * len(fitted.means) / 2


def test_mahalanobis_leaves_dead_directions_out(rng):
    """A unit that is zero on all training rows has no variance to measure by."""
    z, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    z[:, 2] = 0.0
    x = rng.normal(size=(5, 4))

    found = Mahalanobis.fit(z, labels).score(x)
    np.testing.assert_allclose(found, Mahalanobis.fit(z[:, [0, 1, 3]], labels).score(x[:, [0, 1, 3]]))


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_vim_is_the_virtual_logit_less_the_energy(rng, size):
    """Step by step after the paper, for features of any size."""
    h, w, b = size * rng.normal(size=(80, 6)), rng.normal(size=(3, 6)) / size, rng.normal(size=3)
    x = size * rng.normal(size=(5, 6))

    u = -np.linalg.pinv(w) @ b
    np.testing.assert_allclose(w @ vim_origin(w, b) + b, 0.0, atol=1e-12)
    values, vectors = np.linalg.eigh(np.cov((h - u).T, bias=True) + np.outer((h - u).mean(0), (h - u).mean(0)))
    residual = vectors[:, np.argsort(values)[:4]]
    off = np.linalg.norm((h - u) @ residual, axis=1)
    alpha = (h @ w.T + b).max(axis=1).mean() / off.mean()
    expected = [
        alpha * np.linalg.norm((row - u) @ residual) - math.log(sum(math.exp(v) for v in w @ row + b)) for row in x
    ]
    vim = ViM.fit(h - u, h, (h @ w.T + b).max(axis=1), w, b, principal_dim=2)
    np.testing.assert_allclose(vim.score(x, (x @ w.T + b).astype(np.float32)), expected, rtol=1e-5)


def test_vim_of_features_without_anything_off_the_principal_space_is_the_energy(rng):
    """As where half of the units are dead: nothing gives the virtual logit a scale, so it counts for no row."""
    h, w, b = rng.normal(size=(20, 6)), rng.normal(size=(3, 6)), rng.normal(size=3)
    h[:, 3:] = w[:, 3:] = 0.0
    logits = h @ w.T + b

    vim = ViM.fit(h - vim_origin(w, b), h, logits.max(axis=1), w, b)
    for rows in (h, h + np.eye(6)[5]):
        np.testing.assert_allclose(vim.score(rows, logits), -np.logaddexp.reduce(logits, axis=1))


def test_vim_takes_half_of_a_narrow_layer_for_principal(rng):
    """And 512 or 1000 of wide ones, as the authors do."""
    h, w = rng.normal(size=(20, 8)), rng.normal(size=(3, 8))

    assert [default_principal_dim(n) for n in (8, 64, 768, 2048)] == [4, 32, 512, 1000]
    assert ViM.fit(h, h, (h @ w.T).max(axis=1), w, np.zeros(3)).residual.shape == (8, 4)


def model(nodes, constants, features="h"):
    """`[B, 4]` inputs; the nodes make logits of them."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["inputs"], [features]), *nodes],
        "model",
        [value("inputs", TensorProto.FLOAT, ["batch", 4])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


W, B = np.arange(12.0).reshape(3, 4) / 7, np.array([1.0, -2.0, 0.5])
NODE = helper.make_node


@pytest.mark.parametrize(
    ("nodes", "constants", "bias"),
    [
        pytest.param([NODE("Gemm", ["h", "w", "b"], ["logits"], transB=1)], {"w": W, "b": B}, B, id="gemm, transposed"),
        pytest.param([NODE("Gemm", ["h", "w", "b"], ["logits"])], {"w": W.T, "b": B}, B, id="gemm"),
        pytest.param(
            [NODE("Gemm", ["h", "w", "b"], ["logits"], alpha=0.5, beta=2.0)], {"w": 2 * W.T, "b": B / 2}, B, id="scaled"
        ),
        pytest.param([NODE("Gemm", ["h", "w"], ["logits"], transB=1)], {"w": W}, 0 * B, id="gemm without bias"),
        pytest.param([NODE("MatMul", ["h", "w"], ["logits"])], {"w": W.T}, 0 * B, id="matmul"),
        pytest.param(
            [NODE("MatMul", ["h", "w"], ["m"]), NODE("Add", ["m", "b"], ["logits"])],
            {"w": W.T, "b": B},
            B,
            id="matmul, add",
        ),
        pytest.param(
            [NODE("MatMul", ["h", "w"], ["m"]), NODE("Add", ["b", "m"], ["a"]), NODE("Identity", ["a"], ["logits"])],
            {"w": W.T, "b": B},
            B,
            id="add, identity",
        ),
        pytest.param(
            [
                NODE("Constant", [], ["w"], value=numpy_helper.from_array(W.T.astype(np.float32))),
                NODE("MatMul", ["h", "w"], ["m"]),
                NODE("Dropout", ["m"], ["d"]),
                NODE("Cast", ["d"], ["c"], to=TensorProto.FLOAT),
                NODE("Add", ["c", "b"], ["logits"]),
            ],
            {"b": B[None]},
            B,
            id="constant node, dropout, cast, add of a row",
        ),
        pytest.param(
            [NODE("Gemm", ["h", "w", ""], ["m"], transB=1), NODE("Add", ["m", "b"], ["logits"])],
            {"w": W, "b": np.array(0.25)},
            np.full(3, 0.25),
            id="gemm whose bias is left out, add of a number",
        ),
    ],
)
def test_the_last_linear_layer_is_found(nodes, constants, bias):
    """Its weight, its bias, and the tensor that it reads, which can be had as an output."""
    proto = model(nodes, constants)

    head = find_head(proto)
    assert head.features == "h"
    np.testing.assert_allclose(head.weight, W, rtol=1e-6)
    np.testing.assert_allclose(head.bias, bias, rtol=1e-6)
    extended = with_features(proto, head)
    onnx.checker.check_model(extended)
    assert [o.name for o in extended.graph.output] == ["logits", FEATURES]
    assert extended.graph.output[1].type.tensor_type.shape.dim[1].dim_value == 4
    assert [o.name for o in proto.graph.output] == ["logits"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param(
            [NODE("MatMul", ["h", "w"], ["m"]), NODE("LogSoftmax", ["m"], ["logits"])], {"w": W.T}, id="log-softmax"
        ),
        pytest.param([NODE("MatMul", ["h", "inputs"], ["logits"])], {}, id="no constant"),
        pytest.param([NODE("Gemm", ["h", "w"], ["logits"], transA=1)], {"w": W.T}, id="transposed rows"),
        pytest.param(
            [NODE("Gemm", ["h", "w", "b"], ["m"]), NODE("Add", ["m", "b"], ["logits"])],
            {"w": W.T, "b": B},
            id="two biases",
        ),
        pytest.param([NODE("Gemm", ["h", "w", "inputs"], ["logits"])], {"w": W.T}, id="a bias for each row"),
        pytest.param([NODE("Mul", ["h", "w"], ["logits"])], {"w": W[0]}, id="no product of matrices"),
        pytest.param([NODE("MatMul", ["h", "w"], ["logits"])], {"w": W.T[None]}, id="a weight of three axes"),
        pytest.param(
            [NODE("MatMul", ["h", "w"], ["m"]), NODE("Add", ["m", "m"], ["logits"])], {"w": W.T}, id="added to itself"
        ),
    ],
)
def test_other_endings_are_no_linear_layer(nodes, constants):
    """Then nothing is guessed."""
    assert find_head(model(nodes, constants)) is None
