"""What `softkin-train fit` compares unless told otherwise: docs/decisions/0028. Needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from foreign_models import CLASSES, classifier, rows
from softkin.bundle import read_bundle
from softkin_training.cli import main

X, Y = rows(300), np.arange(300) % CLASSES
EUCLIDEAN = "squared_euclidean"


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """The manifest of what the command makes of the classifier of `foreign_models`."""
    monkeypatch.chdir(tmp_path)
    onnx.save(classifier(), "logits.onnx")
    onnx.save(classifier([helper.make_node("Softmax", ["scores"], ["p"], axis=1)], ["p"]), "probabilities.onnx")
    np.savez("d.npz", x_train=X, y_train=Y)

    def fit(*arguments, model="logits.onnx", layers="hidden,before"):
        command = ["fit", "--onnx", model, "--layers", layers, "--data", "d.npz", "--out", ".", *arguments]
        assert main(command) == 0
        return read_bundle("bundle").manifest

    return fit


def test_whitened_layers_are_fused_with_energy(fitted):
    """Directions of the first layers, lengths of the last: what is whitened tells only in its reducer."""
    manifest = fitted()

    assert (manifest.nonconformity, manifest.parts) == ("joint", ("density", "class_density", "energy"))
    assert [layer.metric for layer in manifest.layers] == [EUCLIDEAN, EUCLIDEAN]
    config = manifest.provenance["fit"]["config"]
    assert config["metric"] == {"hidden": "cosine", "before": EUCLIDEAN}
    assert config["whiten"]
    assert config["joint_parts"] == list(manifest.parts)


def test_each_choice_can_be_undone(fitted):
    """One at a time; the others stay."""
    assert [layer.metric for layer in fitted("--no-whiten").layers] == ["cosine", EUCLIDEAN]
    assert [layer.metric for layer in fitted("--no-whiten", layers="before").layers] == [EUCLIDEAN]
    assert fitted("--metric", "cosine").provenance["fit"]["config"]["metric"] == "cosine"
    plain = fitted("--nonconformity", "density")
    assert (plain.nonconformity, plain.parts, plain.calibration_size) == ("density", (), 60)
    assert fitted("--parts", "energy,density").parts == ("energy", "density")


def test_probabilities_have_no_energy(fitted):
    """It would be the same for every row."""
    assert fitted(model="probabilities.onnx").parts == ("density", "class_density")


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ((1, 1, 1, 1, 1, 1), None),
        ((1, 1, 1, 1, 1, 1e4), "compared in units of those"),
        ((1, 1, 1, 1, 1, 1e-4), "those of small numbers"),
    ],
    ids=["alike", "small ones", "a small one"],
)
def test_columns_of_very_different_size_are_remarked_upon(tmp_path, monkeypatch, capsys, scales, said):
    """Of rows themselves: distances hear the largest numbers alone. Hidden layers are no columns of anybody's."""
    monkeypatch.chdir(tmp_path)
    x = X.reshape(len(X), -1) * np.array(scales, np.float32)
    np.savez("d.npz", x_train=x, y_train=Y)
    onnx.save(classifier(inputs=[helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 6])]), "m.onnx")
    remark = "columns of the rows have deviations from"

    for source, of_rows in (
        ("--embeddings d.npz", True),
        ("--onnx m.onnx --layers x --data d.npz", True),
        ("--onnx m.onnx --layers hidden --data d.npz", False),
    ):
        assert main(["fit", *source.split(), "--out", "."]) == 0
        out = capsys.readouterr().out
        assert (remark in out) == (said is not None and of_rows)
        assert said is None or (said in out) == of_rows


def test_vectors_are_whitened_and_keep_all_calibration_rows(tmp_path, monkeypatch):
    """Their directions are: they are no classifier's, and may be of one class. The joint form can be asked for."""
    monkeypatch.chdir(tmp_path)
    np.savez("v.npz", x_train=X.reshape(len(X), -1), y_train=Y)

    found = []
    for more in ([], ["--nonconformity", "joint"]):
        assert main(["fit", "--embeddings", "v.npz", "--out", ".", *more]) == 0
        found.append(read_bundle("bundle").manifest)

    assert [(m.nonconformity, m.parts) for m in found] == [("density", ()), ("joint", ("density", "class_density"))]
    assert [m.provenance["fit"]["config"]["metric"] for m in found] == ["cosine", "cosine"]
    assert all(m.provenance["fit"]["config"]["whiten"] for m in found)
    assert found[0].calibration_size == 60
