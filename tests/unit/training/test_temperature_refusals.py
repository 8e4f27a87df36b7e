"""Representations among which no temperature can be chosen, and calibration rows too few for alpha."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from softkin import mass
from softkin.detector import Detector
from softkin.errors import DataError
from softkin.scorer_graph import IR_VERSION, OPSET
from softkin_training import bank_temperature
from softkin_training.bank_temperature import neighbor_distance, refuse_alike
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.cli import main
from softkin_training.rows import Rows

pytestmark = pytest.mark.training

SPEC_OUTPUTS = ("representation.plain", "representation.dead")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scale", "words"), [(1e25, "are too large"), (1e-30, "are too small")])
def test_distances_that_float32_cannot_hold_are_not_taken_for_equal_rows(scale, words):
    """The remedy is another scale, not another layer."""
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.float32(scale)
    z[:, 1] = 0  # a dead unit is no dead layer

    with pytest.raises(DataError, match=f"{words} for distances in float32; scale the rows"):
        neighbor_distance(z, np.arange(50), "squared_euclidean")
    assert neighbor_distance(z, np.arange(50), "cosine") > 0


def test_one_row_too_large_for_float32_is_enough_to_be_told_how_large_it_is():
    """Whoever looks for it has the number."""
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    z[7] = 1e25

    with pytest.raises(DataError, match=r"representations of up to 1e\+25 are too large for distances in float32"):
        neighbor_distance(z, np.arange(50), "squared_euclidean")


@pytest.mark.parametrize("metric", mass.METRICS)
def test_a_row_is_not_finite_if_one_of_its_numbers_is_not(metric):
    """How many there are is said by either metric."""
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    z[3, 1], z[5], z[7, 0] = np.nan, np.nan, np.inf

    with pytest.raises(DataError, match="3 of 50 rows become NaN or infinity in float32"):
        neighbor_distance(z, np.arange(50), metric)


def test_a_row_that_rounding_makes_equal_to_both_its_neighbours_does_not_make_them_equal():
    """Of three on a line the outer two are apart, whichever is asked for its neighbour."""
    z = np.array([[0.999], [1.0], [1.001]], np.float32)

    refuse_alike(z, np.arange(3), "squared_euclidean")
    for sample in (np.arange(3), np.array([0]), np.array([2])):
        assert neighbor_distance(z, sample, "squared_euclidean") == pytest.approx(0.002**2, rel=0.1)
    with pytest.raises(DataError, match="are equal to within the rounding"):
        neighbor_distance(z, np.array([1]), "squared_euclidean")


def test_one_row_of_another_size_does_not_hide_the_distances_of_all_others():
    """Rounding was taken from the largest row: T was its distance from the rest, and nothing was an outlier."""
    z = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    plain = neighbor_distance(z, np.arange(500), "squared_euclidean")
    z[7] = 1e5

    assert neighbor_distance(z, np.arange(500), "squared_euclidean") == pytest.approx(plain, rel=0.02)


def test_a_dead_layer_is_refused_by_cosine_too():
    """Zeros have no direction, and so are 1 apart: a temperature came of that, and a detector that told nothing."""
    with pytest.raises(DataError, match="all representations of a layer are zero, as those of dead units are, and"):
        neighbor_distance(np.zeros((50, 4), np.float32), np.arange(50), "cosine")


def test_one_row_among_equal_ones_suffices_wherever_it_stands(monkeypatch):
    """Also where most parts of the bank, compared one after the other, tell nothing."""
    monkeypatch.setattr(bank_temperature, "COMPARED_TOGETHER", 10)
    z, sample = np.ones((100, 4), np.float32), np.arange(20)
    for measure in (refuse_alike, neighbor_distance):
        with pytest.raises(DataError, match="layer are equal to within the rounding of float32, so it cannot tell"):
            measure(z, sample, "squared_euclidean")

    z[35] = 2
    refuse_alike(z, sample, "squared_euclidean")
    assert neighbor_distance(z, sample, "squared_euclidean") == 4


def test_rows_beyond_float32_are_called_that(tmp_path, capsys):
    """Vectors in float64 may be; by cosine they become NaN."""
    x = 1e200 * np.random.default_rng(0).normal(size=(100, 4))

    assert fit(tmp_path, x) == 1
    assert "80 of 80 rows become NaN or infinity in float32; scale the rows" in capsys.readouterr().err


@pytest.mark.parametrize(("scale", "dtype"), [(1e30, np.float32), (1e-300, np.float64)], ids=["huge", "tiny"])
def test_rows_whose_length_float32_cannot_hold_are_not_called_equal(tmp_path, capsys, scale, dtype):
    """By cosine they become zeros: the remedy is another scale, whichever."""
    x = (scale * np.random.default_rng(0).normal(size=(100, 4))).astype(dtype)

    assert fit(tmp_path, x) == 1
    assert (
        "and those whose length float32 cannot hold; leave the layer out, or scale the rows: down where numbers are "
        "huge, up where they are tiny\n"
    ) in capsys.readouterr().err


def test_a_bank_of_one_row_has_no_neighbours(tmp_path, capsys):
    """Nor are its rows equal, as was said of them; a class of one row among others does no harm."""
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)

    assert fit(tmp_path, x, "--bank-rows", "1") == 1
    assert (
        "the bank has a single row, which has no neighbour; take more rows, or condense less" in capsys.readouterr().err
    )
    assert neighbor_distance(x[:2], np.arange(2), "cosine") > 0


def fit(tmp_path, x, *more):
    """A bundle of bare vectors."""
    np.savez(tmp_path / "d.npz", x_train=x)
    return main(["fit", "--embeddings", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out"), *more])


def test_the_layer_that_tells_nothing_is_named(tmp_path):
    """Of several only one is to be left out."""
    spec = DetectorSpec(
        name="d",
        version="1",
        classes=("a",),
        layers=tuple(LayerSpec(name=n, metric="squared_euclidean") for n in ("plain", "dead")),
        nonconformity="density",
    )
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["x"], ["representation.plain"]),
        helper.make_node("Sub", ["x", "x"], ["representation.dead"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", *SPEC_OUTPUTS)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    rows, more = (Rows(x[i], np.zeros(len(x[i]), np.int64), i) for i in np.split(np.arange(90), [60]))

    with pytest.raises(
        DataError, match="layer 'dead': all representations of a layer are zero, as those of dead units are"
    ):
        build(tmp_path / "b", model.SerializeToString(), spec, bank_rows=rows, calibration_rows=more)


@pytest.mark.parametrize("offset", [1000, 100_000])
def test_vectors_far_from_the_origin_are_scored_as_those_around_it(tmp_path, offset):
    """Squared distances know no origin; in float32 they were lost beyond a few hundred."""
    rng = np.random.default_rng(0)
    x = rng.integers(-64, 64, (600, 4)).astype(np.float32) / 16
    far = rng.integers(-128, 128, (50, 4)).astype(np.float32) / 16

    found = []
    for shift in (0, offset):
        assert fit(tmp_path, x + np.float32(shift), "--metric", "squared_euclidean") == 0
        found.append(Detector.load(tmp_path / "out" / "bundle", device="cpu").score(far + np.float32(shift)))
    np.testing.assert_allclose(found[1].outlier_score, found[0].outlier_score, rtol=1e-4)


def test_a_temperature_within_rounding_is_remarked_upon(tmp_path, capsys):
    """Scores then move with batch size and processor; either remedy ends it."""
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)

    assert fit(tmp_path, x, "--no-whiten") == 0
    assert "temperature:" not in capsys.readouterr().out
    assert fit(tmp_path, 100 + x, "--no-whiten") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "for embedding, whose nearest rows are so alike" in out
    assert "take --whiten or --metric squared_euclidean, or raise --temperature-scale" in out
    assert fit(tmp_path, 100 + x, "--metric", "squared_euclidean", "--no-whiten") == fit(tmp_path, 100 + x) == 0
    assert "temperature:" not in capsys.readouterr().out


def test_no_calibration_rows_at_all_suggest_no_alpha(tmp_path, capsys):
    """None would do."""
    assert fit(tmp_path, np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)) == 1
    error = capsys.readouterr().err
    assert "--calibration-share: got 0.2, which is 0 of 2 distinct rows" in error
    assert "choose alpha" not in error
