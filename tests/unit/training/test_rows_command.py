"""`softkin-train rows`: new rows of a table or a folder of images, written as `softkin score` reads them."""

from __future__ import annotations

import dataclasses
import errno

import datasets
import numpy as np
import pytest
from PIL import Image

from softkin.score_display import read_array, read_names
from softkin_training.cli import main
from standin import manifest

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def rows(tmp_path, capsys):
    """Runs the command on a bundle with such an input; what it returns, and prints on standard error."""

    def run(*arguments, shape=(2,), dtype="float64", **provenance):
        bundle = tmp_path / "bundle"
        bundle.mkdir(exist_ok=True)
        m = dataclasses.replace(manifest(), input_shape=shape, input_dtype=dtype, provenance=provenance)
        (bundle / "manifest.json").write_text(m.to_json())
        code = main(["rows", str(bundle), "--out", str(tmp_path / "new.npz"), *map(str, arguments)])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def table(tmp_path):
    """Two plants."""
    (tmp_path / "new.csv").write_text("plant,height,width\nno 1,1.5,2.5\n,3.5,4.5\n")
    return tmp_path / "new.csv"


def test_a_table_is_written_with_the_names_of_its_rows(tmp_path, rows, table):
    """Without a column for them there are none."""
    out = str(tmp_path / "new.npz")
    assert rows("--data", table, "--name-column", "plant", input_columns=["width", "height"])[0] == 0
    assert read_array(out, None).tolist() == [[2.5, 1.5], [4.5, 3.5]]
    assert read_names(out, 2) == ["no 1", ""]

    assert rows("--data", table, "--force", input_columns=["width", "height"])[0] == 0
    assert read_names(out, 2) is None


def test_rows_are_named_by_the_column_that_named_the_training_rows(tmp_path, rows, table):
    """Where the table has it; another one can be chosen, and names of whole numbers have no fraction."""
    known = {"input_columns": ["width", "height"], "recipe": {"data": {"name_column": "plant"}}}
    assert rows("--data", table, **known)[0] == 0
    assert read_names(str(tmp_path / "new.npz"), 2) == ["no 1", ""]
    assert rows("--data", table, "--force", "--name-column", "height", **known)[0] == 0
    assert read_names(str(tmp_path / "new.npz"), 2) == ["1.5", "3.5"]
    table.write_text("id,key,height,width\n7,3,1,2\n,4,3,4\n")
    assert rows("--data", table, "--force", **known)[0] == 0
    assert read_names(str(tmp_path / "new.npz"), 2) is None
    assert rows("--data", table, "--force", "--name-column", "id", **known)[0] == 0
    assert read_names(str(tmp_path / "new.npz"), 2) == ["7", ""]
    assert "has no column 'no'; it has" in rows("--data", table, "--force", "--name-column", "no", **known)[1]


def test_images_are_called_by_their_path(tmp_path, rows):
    """Below the folder, in the order of their rows."""
    for name, value in {"b/x.png": 7, "a.png": 9}.items():
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 2), value).save(tmp_path / "images" / name)

    assert rows("--data", tmp_path / "images", shape=(2, 3), dtype="uint8")[0] == 0

    assert read_array(str(tmp_path / "new.npz"), None)[:, 0, 0].tolist() == [9, 7]
    assert read_names(str(tmp_path / "new.npz"), 2) == ["a.png", "b/x.png"]


def test_columns_may_be_named_for_a_detector_that_knows_none(tmp_path, rows, table):
    """As one that was fitted from vectors; a comma within a name is written after a backslash."""
    table.write_text('height,"wide, at the top"\n1.5,2.5\n')

    assert "nothing says which" in rows("--data", table)[1]
    assert rows("--data", table, "--columns", r"wide\, at the top,height")[0] == 0
    assert read_array(str(tmp_path / "new.npz"), None).tolist() == [[2.5, 1.5]]
    assert "--columns: names 'height' twice" in rows("--data", table, "--columns", "height,height", "--force")[1]


def test_what_the_detector_would_refuse_is_not_written(tmp_path, rows, table):
    """Another number of columns, and numbers that are not finite."""
    code, said = rows("--data", table, "--columns", "height")
    assert (code, "new.csv: shape is [2, 1], this detector takes [rows, 2]" in said) == (1, True)
    table.write_text("height,width\n1.5,2.5\n1,inf\n")
    assert "new.csv: row 1 has NaN or infinity" in rows("--data", table, "--columns", "height,width")[1]
    assert not (tmp_path / "new.npz").exists()


def test_options_of_tables_are_refused_for_folders(tmp_path, rows):
    """They would be ignored."""
    for option in ("--columns", "--name-column"):
        said = rows("--data", tmp_path, option, "a")[1]
        assert f"{option} is for tables, and {tmp_path} is a folder; leave it out" in said.replace(": ", " ")


def test_a_file_of_arrays_is_for_score_itself(tmp_path, rows):
    """So is what has no name that tells."""
    assert "`softkin score` reads .npz and .npy as they are" in rows("--data", tmp_path / "x.npz")[1]


def test_a_file_that_exists_is_replaced_on_demand_alone(tmp_path, rows, table):
    """It may be the training rows."""
    (tmp_path / "new.npz").write_bytes(b"mine")

    code, said = rows("--data", table, "--columns", "width,height")
    assert (code, "new.npz exists; pass --force to replace it" in said) == (1, True)
    assert (tmp_path / "new.npz").read_bytes() == b"mine"


def test_a_full_disk_leaves_nothing_half_written(tmp_path, rows, table, monkeypatch):
    """Nor what is there already."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "new.npz").write_bytes(b"mine")
    monkeypatch.setattr(np, "savez", full)
    code, said = rows("--data", table, "--columns", "width,height", "--force")

    assert (code, "cannot write" in said, "No space left on device" in said) == (1, True, True)
    assert (tmp_path / "new.npz").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".new.npz*"))


@pytest.mark.parametrize(
    ("out", "message"),
    [("new.csv", "must be the name of a file that ends in .npz"), ("no/new.npz", "no'; make it first")],
)
def test_what_cannot_become_the_file_is_refused_at_once(tmp_path, rows, table, capsys, out, message):
    """Before anything is read."""
    with pytest.raises(SystemExit, match="2"):
        rows("--data", table, "--out", tmp_path / out)
    assert message in capsys.readouterr().err
