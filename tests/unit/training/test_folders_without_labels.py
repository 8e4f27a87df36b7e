"""Folders of images whose names were meant for classes: the commands say why they label nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from softkin_training.cli import main

pytestmark = pytest.mark.training

SIDE = 4


def images(rng, rows):
    """Of noise on a dark ground or a light one, and which."""
    y = np.arange(rows) % 2
    return (rng.integers(0, 60, (rows, SIDE, SIDE)) + 120 * y[:, None, None]).astype(np.uint8), y


@pytest.fixture
def bundle(tmp_path):
    """Of a network that adds up the pixels of grey images."""
    w = np.stack([-np.ones(SIDE * SIDE), np.ones(SIDE * SIDE)], axis=1).astype(np.float32) / 100
    nodes = [
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    x, y = images(np.random.default_rng(0), 200)
    np.savez(tmp_path / "train.npz", x_train=x, y_train=y, class_names=np.array(["dark", "light"]))
    given = ["--onnx", str(tmp_path / "m.onnx"), "--layers", "flat", "--data", str(tmp_path / "train.npz")]
    assert main(["fit", *given, "--nonconformity", "density", "--out", str(tmp_path / "fitted")]) == 0
    return tmp_path / "fitted" / "bundle"


@pytest.mark.parametrize("names", [("Dark", "light"), ("dark", "light")], ids=["misspelt", "right"])
@pytest.mark.parametrize("command", ["recalibrate", "evaluate"])
def test_a_folder_that_is_called_like_no_class_is_told(bundle, tmp_path, capsys, command, names):
    """Without a word class p-values and accuracy would be missing, and nobody would know which letter is to blame."""
    x, y = images(np.random.default_rng(1), 60)
    if command == "recalibrate":  # which refuses what labels some images only
        names = (names[0], names[1] if names[0] == "dark" else "Light")
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        file = tmp_path / "new" / names[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    np.savez(tmp_path / "far.npz", x_test=255 - x)
    capsys.readouterr()

    new, out = str(tmp_path / "new"), ["--out", str(tmp_path / "out")]
    options = {"recalibrate": ["--data", new], "evaluate": ["--inliers", new, "--outliers", f"a={tmp_path}/far.npz"]}
    assert main([command, str(bundle), *options[command], *out]) == 0

    why = f"{new}: no labels, because the folder 'Dark' is not called like a class, as 'dark' is\n"
    assert capsys.readouterr().err == ("" if names == ("dark", "light") else why)
