"""Classifiers whose last node is a sigmoid for each class. Needs no torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from foreign_models import CLASSES, classifier, rows, tensor
from softkin.errors import InvalidInputError
from softkin_training.cli import main
from softkin_training.expose import expose

X, Y = rows(300), np.arange(300) % CLASSES
REFUSED = (
    r"output: .s. holds sigmoids, .* more than one exceeds 0\.5: the model gives a row several labels, and a "
    r"detector compares it with rows of one class; give a classifier of one label a row .* choose --output-kind logits"
)


def sigmoids(shift, *more, outputs=("s",)):
    """Of the scores less a shift: the larger, the fewer exceed 0.5."""
    nodes = [helper.make_node("Sub", ["scores", "shift"], ["z"]), helper.make_node("Sigmoid", ["z"], ["s"]), *more]
    return classifier(nodes, outputs, initializers=[tensor(np.full(1, float(shift)), "shift")])


def exposed(proto, **options):
    """Of the hidden layer."""
    return expose(proto, X[:64], layers=["hidden"], metric="cosine", max_dim=256, seed=0, **options)


def test_several_labels_a_row_are_refused():
    """They passed for logits, and every verdict rested on whichever label was largest."""
    with pytest.raises(InvalidInputError, match=REFUSED):
        exposed(sigmoids(-9))
    renamed = sigmoids(-9, helper.make_node("Identity", ["s"], ["out"]), outputs=("out",))
    with pytest.raises(InvalidInputError, match="'out' holds sigmoids"):
        exposed(renamed)


def test_who_knows_better_may_say_so():
    """And logits of one label, or what the sigmoids are made of, are taken."""
    assert exposed(sigmoids(-9), output_kind="logits").before_sigmoid == "z"
    before = exposed(sigmoids(-9), output="z")
    assert (before.output, before.before_sigmoid, before.has_energy) == ("z", "", True)


def test_one_label_a_row_is_remarked_upon(tmp_path, monkeypatch, capsys):
    """With what to name in the place of the sigmoids; where that is named nothing is said."""
    monkeypatch.chdir(tmp_path)
    onnx.save(sigmoids(9), "m.onnx")
    np.savez("d.npz", x_train=X, y_train=Y)
    command = ["fit", "--onnx", "m.onnx", "--layers", "hidden", "--data", "d.npz", "--out", "."]

    assert main(command) == 0
    assert "what they are made of says more as logits:\n             --output z\n" in capsys.readouterr().out
    assert main([*command, "--output", "z"]) == 0
    assert "sigmoid" not in capsys.readouterr().out


def test_softmax_and_a_single_sigmoid_are_none_of_it():
    """Their rows sum to 1, with the class that is not there."""
    softmax = classifier([helper.make_node("Softmax", ["scores"], ["p"], axis=1)], ["p"])
    assert exposed(softmax).before_sigmoid == ""
    single = [helper.make_node("MatMul", ["scores", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["s"])]
    found = exposed(classifier(single, ["s"], initializers=[tensor(np.ones((CLASSES, 1)), "w")]), num_classes=2)
    assert (found.output_kind, found.before_sigmoid) == ("probabilities", "")
