"""Tables whose columns are of very different size: compared in units of their deviations. Needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foreign_models import tensor
from softkin import Detector
from softkin.bundle import read_manifest
from softkin.cli import main as softkin
from softkin.errors import DataError, InvalidInputError
from softkin_training.cli import main
from softkin_training.columns import Columns, columns_of
from softkin_training.fit_rows import column_deviations, column_means, column_names, uneven_deviations
from softkin_training.rows import Rows
from softkin_training.split import split

SCALES = np.array([1e4, 1e4, 1.0, 1e-2, 1e-2, 1e-2])
"""Of incomes, of ages, of shares."""


def table(n, seed=0):
    """Rows of three classes, which the first two columns tell apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 6))
    x[:, :2] += 4 * np.array([[0, 0], [1, 0], [0, 1]])[y]
    return x, y


def model(dtype=TensorProto.FLOAT):
    """A classifier of six columns."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["scores"]),
    ]
    weights = tensor((np.eye(6)[:, :3] / SCALES[:, None]).astype(np.float32), "w")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["batch", 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def fitted(tmp_path, monkeypatch, capsys):
    """The detector of rows, and what the command said."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "m.onnx")
    sources = {"vectors": ["--embeddings", "d.npz"], "input": ["--onnx", "m.onnx", "--layers", "x", "--data", "d.npz"]}

    def fit(x, y, *more, source="vectors"):
        np.savez("d.npz", x_train=x, y_train=y)
        assert main(["fit", *sources[source], "--out", ".", *more]) == 0
        return Detector.load("bundle", device="cpu"), capsys.readouterr().out

    return fit


def auroc(detector, inliers, outliers):
    """Share of pairs that stand in their order."""
    dtype = detector.manifest.input_dtype
    a, b = (detector.score(x.astype(dtype)).outlier_score for x in (inliers, outliers))
    return (np.searchsorted(np.sort(a), b, side="left")).mean() / len(a)


@pytest.mark.parametrize("source", ["vectors", "input"])
@pytest.mark.parametrize("column", [2, 4])
def test_outliers_in_a_column_of_small_numbers_are_seen(fitted, source, column):
    """Eight deviations off: whitened as they were, their AUROC was that of a coin."""
    x, y = table(1200)
    x = (x * SCALES).astype(np.float32)
    fresh = table(300, seed=1)[0]
    off = fresh + 8 * np.eye(6)[column]

    detector, said = fitted(x, y, source=source)
    assert auroc(detector, fresh * SCALES, off * SCALES) > 0.97
    assert "compared in units of those,\n             all count alike (--no-standardize: as they are)" in said
    assert detector.manifest.layers[0].reducer.startswith("standardize + whitening")

    plain, said = fitted(x, y, "--no-standardize", source=source)
    assert auroc(plain, fresh * SCALES, off * SCALES) < 0.7
    assert "those of small numbers\n             hardly count (--standardize: all alike)" in said


def test_scores_do_not_depend_on_units(fitted):
    """Whatever columns are measured in, and from whatever zero: exact but for rounding."""
    x, y = table(600)
    fresh = table(100, seed=1)[0]
    other, zero = SCALES[::-1] * 3.0, np.array([1.7e9, 0, 0, 0, 0, -5.0])

    found = [
        fitted(x * scales + offset, y)[0].score(fresh * scales + offset).outlier_score
        for scales, offset in ((SCALES, 0.0), (other, zero))
    ]

    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("source", ["vectors", "input"])
def test_no_score_rests_on_rows_that_calibrate(fitted, source):
    """Deviations are of the other rows: rows that set the scale are no sample like those to come."""
    x, y = table(600)
    x = (x * SCALES).astype(np.float32)
    held_out = split(Rows(x, y, np.arange(600)), 0.2, 0)[1].ids
    others = x.copy()
    others[held_out] *= 3
    fresh = (table(50, seed=1)[0] * SCALES).astype(np.float32)

    found = [fitted(rows, y, "--nonconformity", "density", source=source)[0] for rows in (x, others)]

    assert found[0].score(fresh).outlier_score.tobytes() == found[1].score(fresh).outlier_score.tobytes()
    assert (found[0].score(fresh).p_value != found[1].score(fresh).p_value).any()


def test_tables_are_compared_by_distances_and_encoders_vectors_by_directions(fitted):
    """The direction of an age and an income from nothing says little; who asks for it gets it."""
    x, y = table(600)

    config = fitted(x * SCALES, y)[0].manifest.provenance["fit"]["config"]
    assert (config["metric"], config["standardize"]) == ("squared_euclidean", None)
    assert fitted(x, y)[0].manifest.provenance["fit"]["config"]["metric"] == "cosine"
    asked = fitted(x * SCALES, y, "--metric", "cosine")[0].manifest
    assert asked.provenance["fit"]["config"]["metric"] == "cosine"
    assert asked.layers[0].reducer.startswith("standardize + ")


def test_a_few_small_columns_are_no_table(fitted):
    """Those at the edge of flattened images: their rare ink would outweigh the rest. The remark says what there is."""
    x, y = table(600)
    x = x * np.array([1, 1, 1, 1, 1, 1e-3])

    detector, said = fitted(x, y)
    assert detector.manifest.layers[0].reducer.startswith("whitening")
    assert "--standardize: all alike" in said
    assert fitted(x, y, "--standardize")[0].manifest.layers[0].reducer.startswith("standardize + ")
    both = fitted(x, y, "--standardize", "--max-dim", "4")[0].manifest.layers[0]
    assert both.reducer.startswith("standardize + gaussian-projection(6->4, seed=0) + whitening")


def test_columns_of_one_size_go_without_a_remark(fitted):
    """Nothing is to be chosen, whatever their unit is."""
    x, y = table(600)

    assert "deviations" not in fitted(x, y)[1]
    assert columns_of(1e6 * x, None) is None
    padded = np.hstack([x, np.zeros((600, 9))])  # most columns are constant, as at the edge of flattened images
    assert columns_of(padded, None) is None


def test_the_remark_tells_the_deviations_that_are_farthest_apart():
    """Of columns that vary; up to 30 times apart they all count."""
    x = np.outer([-1.0, 1.0], [1.0, 0.0, 2.0**-9, 30.0])

    assert uneven_deviations(x) == (2.0**-9, 30.0)
    assert uneven_deviations(x[:, [0, 1, 3]]) is None
    assert uneven_deviations(x[:, [1]]) is None
    assert uneven_deviations(x.reshape(2, 1, 4)) is None


def test_hidden_layers_are_nobodys_columns(fitted, capsys):
    """Asked for them, the option is refused; so it is of rows without columns."""
    x, y = table(600)
    x = (x * SCALES).astype(np.float32)
    fitted(x, y)
    command = ["fit", "--onnx", "m.onnx", "--data", "d.npz", "--out", "."]

    assert main([*command, "--layers", "f"]) == 0
    assert read_manifest("bundle").layers[0].reducer.startswith("whitening")
    assert main([*command, "--layers", "f", "--standardize"]) == 1
    assert "--standardize: got True, but none of the layers ['f'] is the model's input" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match=r"standardize: got True for rows \[rows, 2, 3\]; .* leave it out"):
        columns_of(np.zeros((4, 2, 3)), True)
    assert columns_of(np.zeros((4, 2, 3)), None) is None


def test_what_varies_by_rounding_does_not_vary():
    """Divided by its deviation, rounding would outweigh all else; such columns, and constant ones, stay as they are."""
    x = np.stack([np.arange(8), np.full(8, 3), 1000 + np.arange(8) % 2 * 1e-4], axis=1).astype(np.float32)

    assert (column_deviations(x) > 0).tolist() == [True, False, False]
    columns = Columns.of(x)
    assert columns.deviation.tolist() == [x[:, 0].std(), 1, 1]
    np.testing.assert_allclose(columns.center, [3.5, 3, 1000], rtol=1e-6)
    huge = Columns.of(x[:, :1].astype(np.float64) * [1e300, 1e-300])
    np.testing.assert_allclose(huge.deviation, [2.2912878e300, 2.2912878e-300], rtol=1e-6)
    np.testing.assert_allclose(huge.center, [3.5e300, 3.5e-300], rtol=1e-6)
    assert columns_of(np.zeros((4, 2)), None) is None
    assert column_deviations(np.array([[-8, 0], [-4, 0]], np.int32)).tolist() == [2, 0]
    assert columns_of(np.zeros((4, 2)), True).center.tolist() == [0, 0]
    assert columns_of(np.zeros((0, 2)), True) is None
    assert columns_of(np.zeros((4, 2)), True).deviation.tolist() == [1, 1]


@pytest.mark.parametrize("columns", [1, 8, 9, 21])
def test_however_many_columns_there_are_each_is_measured_once(columns):
    """Also of fewer rows than columns."""
    x = np.random.default_rng(0).normal(loc=np.arange(columns), size=(5, columns))

    np.testing.assert_allclose(column_deviations(x), x.std(axis=0))
    np.testing.assert_allclose(column_means(x), x.mean(axis=0))


@pytest.mark.parametrize(
    "source", [["--embeddings", "d.npz"], ["--onnx", "m.onnx", "--layers", "x", "--data", "d.npz"]]
)
def test_columns_have_the_names_of_the_file(tmp_path, monkeypatch, capsys, source):
    """Where it has any: then new rows are found by name in tables, as those of a recipe are."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "m.onnx")
    names = ["income", "age", "a", "b", "c", "share, of all"]
    x, y = table(300)
    x = x.astype(np.float32)
    np.savez("d.npz", x_train=x, y_train=y, column_names=names)

    assert main(["fit", *source, "--out", "."]) == 0

    assert read_manifest("bundle").provenance["input_columns"] == names
    capsys.readouterr()
    assert softkin(["inspect", "bundle"]) == 0
    assert "income, age, a" in capsys.readouterr().out
    np.savez("d.npz", x_train=x, y_train=y)
    assert main(["fit", *source, "--out", "."]) == 0
    assert "input_columns" not in read_manifest("bundle").provenance


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (["a"], (4, 2), r"f\.npz: column_names has 1 names for rows \[rows, 2\]; there must be one for each column"),
        (["a", "b"], (4, 2, 2), r"2 names for rows \[rows, 2, 2\]"),
        (["a", ""] * 2, (4, 4), "column_names has 'a' twice; every column needs a name of its own"),
        (["a", "\ud800"], (4, 2), r"column_names has '\\ud800', which UTF-8 cannot spell"),
    ],
)
def test_names_that_tell_no_columns_apart_are_refused(names, shape, message):
    """Before anything is built."""
    with pytest.raises(DataError, match=message):
        column_names({"x_train": np.zeros(shape), "column_names": np.array(names)}, "f.npz")
