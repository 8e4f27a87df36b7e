"""What `fit` says comes next does what it says."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from softkin_training.cli import main

pytestmark = pytest.mark.training

WIDTH, CLASSES = 6, 3


@pytest.fixture
def files(tmp_path):
    """A network of one hidden layer, rows to fit and calibrate with, inliers and outliers, in a folder with a space."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    rng = np.random.default_rng(0)
    centers = 3 * rng.normal(size=(CLASSES, WIDTH))
    nodes = [
        helper.make_node("Relu", ["x"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["p"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", CLASSES]) for name in ("logits", "p")],
        [numpy_helper.from_array(centers.T.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    y = np.arange(400) % CLASSES
    x = (centers[y] + rng.normal(size=(400, WIDTH))).astype(np.float32)
    np.savez(folder / "train.npz", x_train=x[:300], y_train=y[:300])
    np.savez(folder / "inliers.npz", x_test=x[300:], y_test=y[300:])
    np.savez(folder / "far.npz", x_test=10 * rng.normal(size=(50, WIDTH)).astype(np.float32))
    return folder


@pytest.mark.parametrize(("output", "named"), [("logits", "max logit"), ("p", "max softmax"), ("", "")])
def test_the_command_that_comes_next_compares_scores(files, capsys, output, named):
    """Once its files are filled in; the score that it names is among them, and of vectors it names none."""
    given = ["--embeddings", str(files / "train.npz")]
    if output:
        given = ["--onnx", str(files / "model.onnx"), "--layers", "hidden", "--data", str(files / "train.npz")]
        given += ["--output", output]
    assert main(["fit", *given, "--out", str(files / "out")]) == 0
    said = re.search(r"^next: +(softkin-train .*)\n +(compares .*)\n\Z", capsys.readouterr().out, re.MULTILINE)
    filled = {"FILE": str(files / "inliers.npz"), "NAME=FILE": f"far={files / 'far.npz'}", "DIR": str(files / "report")}

    program, *arguments = shlex.split(said[1])
    assert main([filled.get(a, a) for a in arguments]) == 0

    titles = [score["title"] for score in json.loads((files / "report" / "report.json").read_text())["scores"].values()]
    assert program == "softkin-train"
    assert re.findall(", such as (.*?),", said[2]) == ([named] if named else [])
    assert any(named in title for title in titles)
    assert len(titles) > 5


def test_calibration_rows_of_a_file_of_their_own_are_part_of_it(files, capsys):
    """So that every score has false alarms and shares caught, not the bundle's own alone."""
    rng = np.random.default_rng(1)
    x = (10 * rng.normal(size=(100, WIDTH))).astype(np.float32)
    np.savez(files / "my fresh.npz", x_test=x, y_test=np.arange(100) % CLASSES)
    given = ["--embeddings", str(files / "train.npz"), "--calibration", str(files / "my fresh.npz")]
    assert main(["fit", *given, "--out", str(files / "out")]) == 0
    said = re.search(r"^next: +softkin-train (.*)$", capsys.readouterr().out, re.MULTILINE)
    filled = {"FILE": str(files / "inliers.npz"), "NAME=FILE": f"far={files / 'far.npz'}", "DIR": str(files / "report")}

    assert main([filled.get(a, a) for a in shlex.split(said[1])]) == 0

    scores = json.loads((files / "report" / "report.json").read_text())["scores"].values()
    assert [s["title"] for s in scores if s["false_alarms"] is None] == []
