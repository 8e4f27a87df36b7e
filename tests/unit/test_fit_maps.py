"""Bundles from ONNX classifiers whose layers are feature maps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from foreign_models import classifier, tensor
from softkin.bundle import read_bundle
from softkin_training.cli import main


@pytest.mark.parametrize(("options", "dim"), [((), 3), (("--max-side", "2"), 12), (("--max-side", "0"), 48)])
def test_maps_become_their_means_unless_told_otherwise(tmp_path, options, dim):
    """Of a map's numbers their mean says most: docs/decisions/0027."""
    nodes = [helper.make_node("Relu", ["x"], ["maps"]), helper.make_node("Flatten", ["maps"], ["flat"], axis=1)]
    scores = helper.make_node("MatMul", ["flat", "w"], ["scores"])
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])
    signs = tensor(np.stack([np.ones(48), -np.ones(48)], axis=1), "w")
    onnx.save(classifier(start=[*nodes, scores], inputs=[images], initializers=[signs]), tmp_path / "m.onnx")
    y = np.arange(400) % 2
    x = np.random.default_rng(0).normal(size=(400, 3, 4, 4)) + np.where(y, -1, 1)[:, None, None, None]
    np.savez(tmp_path / "d.npz", x_train=x.astype(np.float32), y_train=y)
    files = ["--onnx", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out")]

    assert main(["fit", *files, "--layers", "maps", *options]) == 0

    [layer] = read_bundle(tmp_path / "out" / "bundle").manifest.layers
    assert layer.dim == dim


def test_maps_whose_means_are_the_same_for_every_row_are_refused(tmp_path, capsys):
    """Attention weights: each row of them sums to 1. Whole, they tell rows apart."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["keys"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "keys"], ["products"]),
        helper.make_node("Softmax", ["products"], ["attention"], axis=-1),
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    heads = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 5, 4])
    signs = tensor(np.stack([np.ones(60), -np.ones(60)], axis=1), "w")
    onnx.save(classifier(start=nodes, inputs=[heads], initializers=[signs]), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(400, 3, 5, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(400) % 2)
    files = ["--onnx", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out")]

    assert main(["fit", *files, "--layers", "attention"]) == 1
    assert capsys.readouterr().err == (
        "softkin-train: error: --max-side: got 1 for 'attention', [rows, 3, 5, 5], whose means over so few rows and "
        "columns are the same for every input, as those of attention weights are; 0 keeps them whole, or name another "
        "tensor\n"
    )
    assert main(["fit", *files, "--layers", "attention", "--max-side", "0"]) == 0
