"""Names of training rows, from a source to its bundle."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pyarrow as pa
import pytest

from softkin.errors import DataError
from softkin_training import train as training
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.name_column import NameColumn

pytestmark = pytest.mark.training


@pytest.fixture
def named(tmp_path):
    """A recipe over an .npz file with names, and what they are."""
    y = np.arange(400) % 3
    x = np.random.default_rng(0).normal(size=(500, 4)) + 3 * np.eye(3, 4)[np.arange(500) % 3]
    names = np.array([f"case/{i}" for i in range(400)])
    arrays = {"x_train": x[:400], "y_train": y, "x_test": x[400:], "y_test": np.arange(400, 500) % 3}

    def recipe(**more):
        np.savez(tmp_path / "d.npz", **arrays, class_names=["a", "b", "c"], **{"names_train": names, **more})
        settings = [f"data.path={tmp_path / 'd.npz'}", "data.source=npz", "data.test_rows=0", "data.known_classes=[]"]
        return load_recipe("digits", [*settings, "data.calibration_rows=100"])

    return recipe, names


def test_a_file_of_arrays_names_its_training_rows(named):
    """By their index in x_train, wherever the split put them."""
    recipe, names = named

    dataset = load_dataset(recipe())

    assert [*dataset.naming(dataset.train.ids)] == names[dataset.train.ids].tolist()
    with pytest.raises(DataError, match=r"d\.npz: names_train is int64 \(400,\); it must be a text for each row"):
        load_dataset(recipe(names_train=np.arange(400)))


def test_the_embedded_digits_have_none():
    """Their ids are scikit-learn's."""
    assert load_dataset(load_recipe("digits")).naming is None


NO_NAMES = {
    "bytes": pa.array([b"a"]),
    "many bytes": pa.array([b"a"], pa.large_binary()),
    "a number of bytes": pa.array([b"a"], pa.binary(1)),
    "views of bytes": pa.array([b"a"], pa.binary_view()),
    "bytes by number": pa.array([b"a"]).dictionary_encode(),
    "lists": pa.array([["a"]]),
    "images": pa.array([{"bytes": b"a", "path": "a.png"}]),
}


@pytest.mark.parametrize("column", NO_NAMES.values(), ids=NO_NAMES)
def test_what_is_no_text_names_no_rows(column):
    """It would be spelled as Python spells it."""
    with pytest.raises(DataError, match=r"t: column 'c' is .*, and a name is text, a number or a date; name another"):
        NameColumn(column, "t: column 'c'")


def test_numbers_name_rows_in_their_own_digits():
    """A gap makes whole numbers others, and is no name."""
    names = NameColumn(pa.chunked_array([[1.5, None], [2.0, 1e16]]), "t")

    assert names.all() == names(np.arange(4)) == ["1.5", "", "2", "10000000000000000"]


def test_names_do_not_travel_to_processes_that_train(named, tmp_path, monkeypatch):
    """They are of no use there, may be many, and what reads them cannot always be sent."""
    recipe, _ = named
    dataset, sent = load_dataset(recipe()), []
    monkeypatch.setattr(training, "spawns", lambda fabric: True)
    monkeypatch.setattr(training, "launch", lambda fabric, function, *arguments: sent.extend(arguments))
    monkeypatch.setattr(training, "_load", lambda *arguments: None)

    training.train(recipe(), dataset, tmp_path / "out")

    assert sent[1] == dataclasses.replace(dataset, naming=None)
    assert pickle.loads(pickle.dumps(sent[1])).naming is None
