"""New rows of a table: by the names of columns, in the dtype of the training rows, with the classes' labels."""

from __future__ import annotations

import dataclasses
import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from softkin.errors import DataError
from softkin_training.new_rows import read_calibrating, read_inputs, read_labelled
from standin import manifest

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def takes(shape=(2,), dtype="float64", *, columns=("width", "height"), classes=("cat", "dog"), **data):
    """A detector whose training rows came from such columns."""
    provenance = {"recipe": {"data": data}} | ({"input_columns": list(columns)} if columns else {})
    return dataclasses.replace(manifest(), input_shape=shape, input_dtype=dtype, classes=classes, provenance=provenance)


def write(path, text):
    """A table."""
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["new.csv", "new.CSV", "new.parquet"])
def test_columns_are_found_by_name(tmp_path, name):
    """Whatever their order in this file, and whatever else it holds."""
    if name.lower().endswith("csv"):
        path = write(tmp_path / name, "id,height,width\na,1.5,2.5\nb,3.5,4.5\n")
    else:
        path = tmp_path / name
        pq.write_table(pa.table({"id": ["a", "b"], "height": [1.5, 3.5], "width": [2.5, 4.5]}), path)

    assert read_inputs(path, takes()).tolist() == [[2.5, 1.5], [4.5, 3.5]]


def test_a_bundle_of_before_names_columns_in_its_recipe_alone(tmp_path):
    """Where the recipe left them to the file, nothing tells their order."""
    path = write(tmp_path / "new.csv", "height,width\n1.5,2.5\n")

    assert read_inputs(path, takes(columns=(), input_columns=["width", "height"])).tolist() == [[2.5, 1.5]]
    with pytest.raises(DataError, match=r"new\.csv: has the columns 'height', 'width', and nothing says which"):
        read_inputs(path, takes(columns=(), input_columns=[]))


def test_of_one_column_no_name_is_needed(tmp_path):
    """A vector a row, made by whatever embeds; and images, which the recipe resized."""
    pq.write_table(pa.table({"label": ["x"], "v": [[1.0, 2.0]]}), tmp_path / "vectors.parquet")
    png = io.BytesIO()
    Image.new("RGB", (4, 6), (7, 8, 9)).save(png, "png")
    pq.write_table(pa.table({"image": [png.getvalue()]}), tmp_path / "images.parquet")

    assert read_inputs(tmp_path / "vectors.parquet", takes(columns=())).tolist() == [[1.0, 2.0]]
    images = read_inputs(tmp_path / "images.parquet", takes((3, 2, 3), "uint8", columns=(), image_size=[3, 2]))
    assert images.tolist() == [[[[7, 8, 9]] * 2] * 3]


def test_a_column_that_is_missing_is_named(tmp_path):
    """With those that a row is made of, and those that are there; so is a value."""
    path = write(tmp_path / "new.csv", "width,heigth\n1,2\n")

    with pytest.raises(
        DataError, match="no column 'height'; a row is made of 'width', 'height'; it has 'width', 'heigth'"
    ):
        read_inputs(path, takes())
    write(path, "width,height\n1,2\n3,\n")
    with pytest.raises(DataError, match=r"new\.csv: column 'height' has no value in row 1; fill it in, or drop"):
        read_inputs(path, takes())
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_inputs(tmp_path / "none.csv", takes())


def test_several_files_go_by_a_pattern(tmp_path):
    """In the order of their names; a file that is called like a pattern is meant itself."""
    for name, row in {"part-1": "1,2", "part-0": "3,4", "part-[1]": "5,6"}.items():
        write(tmp_path / f"{name}.csv", f"width,height\n{row}\n")

    assert read_inputs(tmp_path / "part-?.csv", takes()).tolist() == [[3, 4], [1, 2]]
    assert read_inputs(tmp_path / "part-[1].csv", takes()).tolist() == [[5, 6]]


def test_whole_numbers_are_the_fractions_that_the_detector_takes(tmp_path):
    """A few rows do not tell that others have points; but a fraction is no whole number, and none is cut off."""
    path = write(tmp_path / "new.csv", "width,height\n1,2\n3,4\n")
    x = read_inputs(path, takes())
    assert (x.dtype, x.tolist()) == (np.dtype("float64"), [[1.0, 2.0], [3.0, 4.0]])
    assert read_inputs(path, takes(dtype="uint8")).dtype == np.uint8

    path = write(tmp_path / "odd.csv", "width,height\n1,2\n3,300\n")
    with pytest.raises(DataError, match=r"odd\.csv: column 'height' has 300 in row 1, and the detector takes uint8"):
        read_inputs(path, takes(dtype="uint8"))
    path = write(tmp_path / "fraction.csv", "width,height\n1,2\n3,.5\n")
    with pytest.raises(DataError, match=r"column 'height' has 0\.5 in row 1, and the detector takes int64"):
        read_inputs(path, takes(dtype="int64"))
    path = write(tmp_path / "large.csv", "width,height\n1,2\n3,-1e39\n")
    with pytest.raises(DataError, match=r"column 'height' has -1e\+39 in row 1, and the detector takes float32, whi"):
        read_inputs(path, takes(dtype="float32"))


def test_labels_are_the_classes_by_name(tmp_path):
    """Of the column that the recipe named; in the order of the detector, which may know some classes only."""
    path = write(tmp_path / "new.csv", "kind,width,height\ndog,1,2\ncat,3,4\ndog,5,6\n")

    for read in (read_labelled, read_calibrating):
        x, y = read(path, takes(label_column="kind"))
        assert (x.shape, y.tolist()) == ((3, 2), [1, 0, 1])
        assert read(path, takes())[1] is None  # no column `label`
    assert read_labelled(path, takes(label_column="kind", classes=("all",)))[1] is None
    assert read_calibrating(path, takes(label_column="kind", classes=("all",)))[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("cat", "bird"), "row 0 has the label 'dog', no class; the detector knows 'cat', 'bird'"),
        (("dog", "cat", "dog"), "row 0 has the label 'dog', which is the name of 2 classes"),
    ],
)
def test_a_label_that_is_not_one_class_is_refused(tmp_path, classes, message):
    """As numbers, too, whose names are their digits."""
    path = write(tmp_path / "new.csv", "label,width,height\ndog,1,2\ncat,3,4\n")
    with pytest.raises(DataError, match=message):
        read_labelled(path, takes(classes=classes))

    path = write(tmp_path / "numbers.csv", "label,width,height\n7,1,2\n0,3,4\n")
    assert read_labelled(path, takes(classes=("0", "7")))[1].tolist() == [1, 0]


def test_rows_that_calibrate_must_be_finite(tmp_path):
    """As those of an npz file must."""
    path = write(tmp_path / "new.csv", "width,height\n1.5,2.5\ninf,2\n")

    with pytest.raises(DataError, match=r"new\.csv: the table has 1 rows with NaN or infinity, the first is row 1"):
        read_calibrating(path, takes())
