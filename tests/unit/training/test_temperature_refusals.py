"""Representations among which no temperature can be chosen, and calibration rows too few for alpha."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from softkin.errors import DataError
from softkin.scorer_graph import IR_VERSION, OPSET
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.cli import main
from softkin_training.rows import Rows
from softkin_training.temperature import neighbor_distance

pytestmark = pytest.mark.training

SPEC_OUTPUTS = ("representation.plain", "representation.dead")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("scale", "words"), [(1e25, "are too large"), (1e-30, "are too small")])
def test_distances_that_float32_cannot_hold_are_not_taken_for_equal_rows(scale, words):
    """The remedy is another scale, not another layer."""
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * np.float32(scale)

    with pytest.raises(DataError, match=f"{words} for distances in float32; scale the rows"):
        neighbor_distance(z, np.arange(50), "squared_euclidean")
    assert neighbor_distance(z, np.arange(50), "cosine") > 0


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

    with pytest.raises(DataError, match="layer 'dead': all representations of a layer are equal"):
        build(tmp_path / "b", model.SerializeToString(), spec, bank_rows=rows, calibration_rows=more)


def test_no_calibration_rows_at_all_suggest_no_alpha(tmp_path, capsys):
    """None would do."""
    assert fit(tmp_path, np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)) == 1
    error = capsys.readouterr().err
    assert "0 rows cannot give a p-value of 0.05; at least 19 are needed" in error
    assert "choose alpha" not in error
