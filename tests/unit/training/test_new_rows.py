"""What a bundle is evaluated on and recalibrated with: files, or folders of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softkin.errors import DataError
from softkin_training.new_rows import read_calibrating, read_inputs, read_labelled, why_unlabelled
from standin import manifest

pytestmark = pytest.mark.training


def takes(shape, dtype="uint8", *, classes=("cat", "dog"), image_size=()):
    """A detector of such rows, whose recipe resized images or did not."""
    provenance = {"recipe": {"data": {"image_size": list(image_size)}}}
    return dataclasses.replace(manifest(), input_shape=shape, input_dtype=dtype, classes=classes, provenance=provenance)


def paint(path, value, size=(3, 2), mode="RGB"):
    """An image of one colour, `size` wide and high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def folder(tmp_path):
    """A dog and two cats."""
    paint(tmp_path / "x" / "dog" / "a.png", (1, 2, 3))
    paint(tmp_path / "x" / "cat" / "deep" / "b.png", (4, 5, 6))
    paint(tmp_path / "x" / "cat" / "c.png", (7, 8, 9))
    return tmp_path / "x"


def test_images_come_by_path_and_folders_called_like_classes_are_labels(folder):
    """Of any depth below them."""
    x, y = read_labelled(folder, takes((2, 3, 3)))

    assert x.shape == (3, 2, 3, 3)
    assert x[:, 0, 0].tolist() == [[7, 8, 9], [4, 5, 6], [1, 2, 3]]
    assert y.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(read_inputs(folder, takes((2, 3, 3))), x)


@pytest.mark.parametrize("spelled", ["caf\u00e9", "cafe\u0301"])
def test_a_folder_may_be_spelled_as_another_system_spells_it(folder, spelled):
    """Letters with their accents, and letters before them, look the same; the message listed the very word."""
    paint(folder / spelled / "d.png", (0, 0, 0))
    classes = ("dog", "cafe\u0301" if spelled == "caf\u00e9" else "caf\u00e9", "cat")

    assert read_labelled(folder, takes((2, 3, 3), classes=classes))[1].tolist() == [1, 2, 2, 0]


def test_a_folder_that_is_called_like_two_classes_is_refused(folder):
    """Those of an existing classifier may share a name; all images were taken for the first."""
    twice = takes((2, 3, 3), classes=("cat", "dog", "cat"))

    with pytest.raises(
        DataError, match=r"x: the detector has 2 classes called 'cat', so .*; give an \.npz with x_test"
    ):
        read_labelled(folder, twice)


@pytest.mark.parametrize("extra", ["bird/d.png", "d.png"], ids=["another folder", "no folder"])
def test_with_other_folders_nothing_is_labelled(folder, extra):
    """Part of the labels would be none."""
    paint(folder / extra, (0, 0, 0))

    x, y = read_labelled(folder, takes((2, 3, 3)))

    assert (len(x), y) == (4, None)


def test_a_detector_of_grey_images_gets_grey_ones(folder):
    """Whatever the files are."""
    assert read_inputs(folder, takes((2, 3))).shape == (3, 2, 3)


def test_images_are_resized_where_those_of_training_were(folder):
    """And nowhere else: outliers must not differ by what was done to them."""
    paint(folder / "dog" / "large.png", (9, 9, 9), size=(9, 8))

    assert read_inputs(folder, takes((2, 3, 3), image_size=(2, 3))).shape == (4, 2, 3, 3)
    with pytest.raises(DataError, match=r"large.png: is 8 x 9 pixels, and this detector takes 2 x 3.*resize it"):
        read_inputs(folder, takes((2, 3, 3)))


def test_a_bundle_without_a_recipe_takes_images_as_they_are(folder):
    """Such as one of an existing classifier."""
    fitted = dataclasses.replace(takes((2, 3, 3)), provenance={"fit": {}})

    assert read_inputs(folder, fitted).shape == (3, 2, 3, 3)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((13,), "float64"), ((2, 3, 3), "float32"), ((3, 4, 5), "uint8")],
    ids=["numbers", "floats", "channels first"],
)
def test_a_detector_of_other_rows_is_told_from_a_folder(folder, shape, dtype):
    """The message has what it takes."""
    with pytest.raises(DataError, match=f"is a folder.*takes {dtype} .*give an .npz with x_test"):
        read_inputs(folder, takes(shape, dtype))


def test_a_folder_without_images_is_refused(tmp_path):
    """With the names that they need."""
    with pytest.raises(DataError, match=r"holds no images.*\.png"):
        read_inputs(tmp_path, takes((2, 3, 3)))


def test_labels_of_a_file_are_left_alone_where_there_is_one_class(tmp_path):
    """Vectors without labels: what a file calls them is no class of the detector."""
    path = Path(tmp_path / "a.npz")
    np.savez(path, x_test=np.zeros((4, 3), np.float32), y_test=np.arange(4))

    x, y = read_labelled(path, takes((3,), "float32", classes=("all",)))

    assert (len(x), y) == (4, None)
    with pytest.raises(DataError, match=r"y_test\[2\] is 2"):
        read_labelled(path, takes((3,), "float32"))


def test_rows_that_calibrate_are_labelled_all_or_none(folder):
    """Where some images lie in folders of classes and others do not, one is misspelt, or labelling is unfinished."""
    x, y = read_calibrating(folder, takes((2, 3, 3)))

    assert (len(x), y.tolist()) == (3, [0, 0, 1])
    with pytest.raises(DataError, match=r"x: 'cat' is called like a class \(cat, bird\), but not .* or of none: put"):
        read_calibrating(folder, takes((2, 3, 3), classes=("cat", "bird")))
    x, y = read_calibrating(folder, takes((2, 3, 3), classes=("bird", "fish")))
    assert (len(x), y) == (3, None)


def test_a_file_that_calibrates_may_have_labels(tmp_path):
    """As `softkin-train recalibrate` has it; those there are must be classes, and rows finite."""
    path, of_two = tmp_path / "a.npz", takes((3,), "float32")
    np.savez(path, x_test=np.zeros((4, 3), np.float32))

    _, y = read_calibrating(path, takes((3,), "float32", classes=("all",)))

    assert y.tolist() == [0] * 4
    assert read_calibrating(path, of_two)[1] is None
    np.savez(path, x_test=np.zeros((4, 3), np.float32), y_test=np.array([0, 1, 1, 2]))
    with pytest.raises(DataError, match=r"y_test\[3\] is 2"):
        read_calibrating(path, of_two)
    np.savez(path, x_test=np.full((4, 3), np.nan, np.float32))
    with pytest.raises(DataError, match="4 rows with NaN"):
        read_calibrating(path, of_two)


def test_a_folder_that_is_called_like_no_class_is_named(tmp_path):
    """One letter may be what keeps all labels away; images beside each other were meant to have none."""
    paint(tmp_path / "a" / "Cat" / "a.png", (1, 2, 3))
    paint(tmp_path / "a" / "Dog" / "a.png", (1, 2, 4))
    paint(tmp_path / "b" / "a.png", (1, 2, 5))
    (tmp_path / "rows.npz").touch()
    m = takes((2, 3, 3))

    assert read_calibrating(tmp_path / "a", m)[1] is None
    why = why_unlabelled(tmp_path / "a", m)

    assert why == f"{tmp_path / 'a'}: no labels, because the folder 'Cat' is not called like a class, as 'cat' is"
    assert why_unlabelled(tmp_path / "b", m) == ""
    assert why_unlabelled(tmp_path / "rows.npz", m) == ""
    assert why_unlabelled(tmp_path / "a", takes((2, 3, 3), classes=("all",))) == ""


@pytest.mark.parametrize("read", [read_labelled, read_calibrating])
def test_labels_that_count_the_classes_in_another_order_are_refused(tmp_path, read):
    """As those of a file that numbers the classes it happens to hold; in their order, or without names, they do."""
    m, path = takes((2,), "float32", classes=("a", "b", "c")), tmp_path / "c.npz"
    rows = {"x_test": np.ones((2, 2), "f4"), "y_test": np.array([0, 1])}
    for names in ({"class_names": ["a", "b", "c"]}, {}):
        np.savez(path, **rows, **names)
        assert read(path, m)[1].tolist() == [0, 1]

    np.savez(path, **rows, class_names=["b", "c"])
    with pytest.raises(
        DataError, match=r"c\.npz: class_names has 'b' at 0, the classes of the training rows at 1; num"
    ):
        read(path, m)
