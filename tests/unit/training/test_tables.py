"""Parquet, CSV and data sets in the hub's layout."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import fake_hub
from fake_hub import hub
from small_tables import NETWORK
from softkin.errors import DataError, RecipeError
from softkin_training.cli import main
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from warm_processes import WarmProcess

pytestmark = pytest.mark.training

RECIPE = f"""
name = "table"
[data]
source = "parquet"
calibration_rows = 40
{NETWORK}bank_rows = 100
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def recipe(tmp_path, path, *overrides):
    """The recipe above over a table."""
    file = tmp_path / "table.toml"
    file.write_text(RECIPE)
    return load_recipe(file, [f"data.path={path}", *overrides])


def numbers(n=120, seed=0):
    """Three features and a label in words."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 3)) + 3 * np.eye(3)[y]
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "label": np.array(["low", "mid", "top"])[y]}


def encoded(x):
    """A PNG."""
    file = io.BytesIO()
    Image.fromarray(x).save(file, "png")
    return file.getvalue()


def write(path, columns):
    """A table as parquet or CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        rows = zip(*(np.asarray(c).tolist() for c in columns.values()), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    else:
        pq.write_table(pa.table(columns), path)
    return path


def parts(dataset):
    """Train and calibration together, in the order of ids."""
    ids = np.concatenate([dataset.train.ids, dataset.calibration.ids])
    x, y = (np.concatenate([getattr(p, k) for p in (dataset.train, dataset.calibration)]) for k in "xy")
    order = np.argsort(ids)
    return ids[order], x[order], y[order]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_numeric_columns_are_features_and_words_are_classes(tmp_path, suffix):
    """Every column but the label, in the table's order; classes in the order of their names."""
    columns, test = numbers(), numbers(30, seed=1)
    paths = write(tmp_path / f"train.{suffix}", columns), write(tmp_path / f"test.{suffix}", test)
    dataset = load_dataset(recipe(tmp_path, paths[0], f"data.source={suffix}", f"data.test_path={paths[1]}"))

    ids, x, y = parts(dataset)
    assert (dataset.class_names, dataset.train.dtype) == (("low", "mid", "top"), np.float64)
    assert ids.tolist() == list(range(120))
    assert np.array_equal(x, np.stack([columns[k] for k in "abc"], axis=1))
    assert [dataset.class_names[i] for i in y] == columns["label"].tolist()
    assert np.array_equal(dataset.test.x, np.stack([test[k] for k in "abc"], axis=1))


def test_columns_are_chosen_and_ordered_by_the_recipe(tmp_path):
    """input_columns, label_column; whole numbers are labels too, and rows may be set aside for testing."""
    columns = numbers() | {"label": np.arange(120) % 2 * 5 + 10}
    columns["species"] = columns.pop("label")
    path = write(tmp_path / "train.parquet", columns)
    settings = ['data.input_columns=["c", "a"]', "data.label_column=species", "data.test_rows=20"]
    dataset = load_dataset(recipe(tmp_path, path, *settings))

    assert dataset.class_names == ("10", "15")
    assert len(dataset.test) == 20
    assert np.array_equal(dataset.test.x, np.stack([columns["c"], columns["a"]], axis=1)[dataset.test.ids])


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_lists_of_numbers_keep_their_shape(tmp_path, dtype):
    """Nested lists are maps; a dtype that no detector takes becomes the next one that is."""
    x = np.random.default_rng(0).integers(0, 100, size=(100, 4, 5)).astype(dtype)
    maps = pa.array(x.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(x.dtype))))
    path = write(tmp_path / "x.parquet", {"x": maps, "label": np.arange(100) % 2})
    dataset = load_dataset(recipe(tmp_path, path, "data.test_rows=20"))

    assert dataset.train.dtype == {"int16": "int32"}.get(dtype, dtype)
    assert np.array_equal(dataset.test.x, x[dataset.test.ids])


def test_files_by_a_pattern_are_one_table(tmp_path):
    """In the order of their names."""
    for i in range(3):
        write(tmp_path / f"part-{i}.parquet", numbers(50, seed=i))
    dataset = load_dataset(recipe(tmp_path, tmp_path / "part-*.parquet", "data.test_rows=20"))

    third = np.flatnonzero(dataset.train.ids >= 100)
    expected = np.stack([numbers(50, seed=2)[k] for k in "abc"], axis=1)
    assert np.array_equal(dataset.train.read(third), expected[dataset.train.ids[third] - 100])


def hub_layout(tmp_path, rows=120):
    """A folder as data sets stand on the hub: images with named classes, in splits."""
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    sizes = {"train": rows, "test": 30}
    pixels = {split: rng.integers(0, 256, size=(n, 6, 6, 3), dtype=np.uint8) for split, n in sizes.items()}
    for split, x in pixels.items():
        table = datasets.Dataset.from_dict(
            {"image": [{"bytes": encoded(i), "path": None} for i in x], "label": (np.arange(len(x)) % 2).tolist()},
            features=features,
        )
        (tmp_path / "pets" / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / "pets" / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "pets", pixels


def test_a_data_set_in_the_hubs_layout_is_read(tmp_path):
    """Images are decoded, class names come from the features, both splits are used."""
    folder, pixels = hub_layout(tmp_path)
    dataset = load_dataset(recipe(tmp_path, folder, "data.source=hub"))

    assert dataset.class_names == ("cat", "dog")
    assert np.array_equal(parts(dataset)[1], pixels["train"])
    assert np.array_equal(dataset.test.x, pixels["test"])
    assert dataset.test.y.tolist() == [0, 1] * 15


def test_a_split_that_is_not_there_lists_those_that_are(tmp_path):
    """With the way to do without one."""
    folder, _ = hub_layout(tmp_path)

    with pytest.raises(RecipeError, match=r"test_split: .* no split 'validation'; it has 'test', 'train'; "):
        load_dataset(recipe(tmp_path, folder, "data.source=hub", "data.test_split=validation"))
    dataset = load_dataset(recipe(tmp_path, folder, "data.source=hub", "data.test_split=''", "data.test_rows=20"))
    assert len(dataset.test) == 20


@pytest.mark.parametrize(
    ("edit", "overrides", "error", "words"),
    [
        (
            {},
            ["data.label_column=kind"],
            RecipeError,
            ["data.label_column: ", "has no column 'kind' in train", "it has 'a', 'b', 'c', "],
        ),
        ({}, ['data.input_columns=["a", "z"]'], RecipeError, ["data.input_columns: ", "has no column 'z' in train"]),
        ({}, ["data.name_column=z"], RecipeError, ["data.name_column: ", "has no column 'z' in train"]),
        ({"b": [[1]] * 120}, ["data.name_column=b"], DataError, ["data.name_column 'b' is list", "a name is text"]),
        ({"b": ["x"] * 120}, [], DataError, ["column 'b' is", "string", "neither numbers nor images"]),
        ({"b": [1.0, None] * 60}, [], DataError, ["column 'b' has no value in row 1;"]),
        ({"b": [1.0] * 7 + [float("nan")] + [1.0] * 112}, [], DataError, ["NaN or infinity, first row 7;"]),
        ({"b": [[1.0, 2.0], [3.0, None]] * 60}, [], DataError, ["column 'b' has lists with missing numbers"]),
        ({"label": [0, 1] * 59 + [None, 1]}, ["data.source=csv"], DataError, ["has no value in row 118"]),
        ({"label": ["only"] * 120}, [], DataError, ["of classes it has 'only'", "at least 2"]),
        ({"b": [[1, 2], [3]] * 60}, [], DataError, ["column 'b' has rows of [1, 2] numbers"]),
        ({"label": [0.5, 1.5] * 60}, [], DataError, ["label column 'label' is double", "whole numbers or text"]),
        ({"label": ["x", "y", None] * 40}, [], DataError, ["row 2 has the label None", "'x', 'y'"]),
        ({"label": ["x", "None"] * 60}, ["data.source=csv"], DataError, ["label None", "rename a class", "NA or None"]),
        ({"label": ["x", "y", "x "] * 40}, [], DataError, ["the label 'x ', which is 'x' but for spaces; mend it"]),
        ({"label": ["x", "y", ""] * 40}, [], DataError, ["the label '', which is empty; mend it"]),
        ({"b": pa.array([[]] * 120, pa.list_(pa.int8()))}, [], DataError, ["column 'b' has lists of no numbers"]),
        (
            {"Unnamed: 0": range(120)},
            [],
            RecipeError,
            ["row numbers as pandas", "data.input_columns = ['a', 'b', 'c']"],
        ),
        ({"b": [b"no image"] * 120}, [], DataError, ["column 'b' holds images", "data.input_columns = ['b']"]),
        ({"b": [b"no image"] * 120}, ['data.input_columns=["b"]'], DataError, ["image in row 0: cannot be read"]),
        ({"b": [[[1, 2]]] * 120}, [], DataError, ["column 'b' holds 2 axes", "the only input"]),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, edit, overrides, error, words):
    """The message names column, row and remedy, and nothing half-made stays."""
    path = write(tmp_path / f"train.{'csv' if 'data.source=csv' in overrides else 'parquet'}", numbers() | edit)

    with pytest.raises(error) as refusal:
        load_dataset(recipe(tmp_path, path, "data.test_rows=20", *overrides))

    assert [word for word in words if word not in str(refusal.value)] == []
    assert not [p for p in (tmp_path / "cache").rglob("*") if "incomplete" in p.name and p.suffix != ".lock"]


def test_images_of_mixed_sizes_name_both_rows(tmp_path):
    """As in folders."""
    images = [encoded(np.full((8 + (i == 70), 8), i, np.uint8)) for i in range(100)]
    path = write(tmp_path / "x.parquet", {"image": images, "label": np.arange(100) % 2})

    with pytest.raises(DataError, match=r"image in row 70 is 9 x 8 pixels, .*image in row 0 is 8 x 8"):
        load_dataset(recipe(tmp_path, path, "data.test_rows=20"))
    resized = load_dataset(recipe(tmp_path, path, "data.test_rows=20", "data.image_size=[5, 5]", "data.image_mode=L"))
    assert resized.train.row_shape == (5, 5)


def test_a_label_that_train_does_not_know_is_refused(tmp_path):
    """Its row and its value are named."""
    train = write(tmp_path / "train.csv", numbers())
    test = write(tmp_path / "test.csv", numbers(9) | {"label": ["low"] * 8 + ["new"]})

    with pytest.raises(DataError, match=r"test\.csv, test: row 8 has the label 'new'.*'low', 'mid', 'top'"):
        load_dataset(recipe(tmp_path, train, "data.source=csv", f"data.test_path={test}"))


@pytest.mark.parametrize("name", ["a [1].csv", "spaced \u00fc.csv", "star*.csv"])
def test_a_file_is_found_whatever_it_is_called(tmp_path, name):
    """Brackets and stars of a name that exists are no pattern."""
    path = write(tmp_path / name, numbers())

    assert len(load_dataset(recipe(tmp_path, path, "data.source=csv", "data.test_rows=20")).train) == 60


def test_test_rows_that_cannot_be_read_name_their_file(tmp_path):
    """The file of training rows is not the only suspect."""
    train, test = write(tmp_path / "train.parquet", numbers()), tmp_path / "test.parquet"
    test.write_bytes(b"no table")

    with pytest.raises(DataError, match=r"train\.parquet and .*test\.parquet: cannot be read as parquet"):
        load_dataset(recipe(tmp_path, train, f"data.test_path={test}"))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_damaged_file_is_refused_by_name_and_can_be_mended(tmp_path, suffix):
    """Whatever the library raises, the error is ours; afterwards the mended file is read."""
    path = write(tmp_path / f"train.{suffix}", numbers())
    whole = path.read_bytes()
    path.write_bytes(b'"\n1,2,3,"x\ny,\n' if suffix == "csv" else whole[: len(whole) // 2])
    asked = recipe(tmp_path, path, f"data.source={suffix}", "data.test_rows=20")

    with pytest.raises((DataError, RecipeError), match=rf"train\.{suffix}"):
        load_dataset(asked)
    path.write_bytes(whole)

    assert len(load_dataset(asked).train) == 60


def test_a_file_that_is_not_there_is_named(tmp_path):
    """Before anything else is tried."""
    with pytest.raises(DataError, match=r"missing\.parquet: no such file"):
        load_dataset(recipe(tmp_path, tmp_path / "missing.parquet", "data.test_rows=20"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.test_rows=0"], r"data\.test_rows is 0: must be at least 1 where test_path is empty"),
        (["data.test_rows=5", "data.test_path=x"], r"data\.test_rows is 5: .*and 0 where it names one"),
        (["data.test_rows=5", "data.subset=x"], r"data\.subset is 'x': belongs to source = 'hub'"),
        (["data.test_rows=5", "data.image_size=[3]"], r"data\.image_size is \[3\]: must be \[height, width\]"),
        (["data.test_rows=5", "data.image_mode=CMYK"], r"data\.image_mode is 'CMYK': .*'RGB' or 'L'"),
        (["data.source=npz", "data.input_columns=['a']"], r"data\.input_columns is .*'parquet' or 'csv' or 'hub'"),
        (["data.test_rows=5", "data.input_columns=['a', 'label']"], r"must not hold the labels, 'label'"),
        (["data.test_rows=5", "data.input_columns=['a', 'a']"], r"must not repeat a column"),
        (["data.test_rows=5", "data.name_column=label"], r"data\.name_column is 'label': must not be the labels"),
        (["data.source=npz", "data.name_column=a"], r"data\.name_column is .*'parquet' or 'csv' or 'hub'"),
    ],
)
def test_keys_that_contradict_the_source_are_refused(tmp_path, overrides, words):
    """When the recipe is read."""
    with pytest.raises(RecipeError, match=words):
        recipe(tmp_path, "x", *overrides)


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_said_with_the_remedy_and_nothing_stays(tmp_path):
    """No half-made state: the next try starts clean."""
    status, _, errors = train_from_hub(tmp_path, "http://127.0.0.1:9")

    assert status == 1
    assert "someone/pets: cannot be had from the hub" in errors
    assert "check the connection and run again" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert kept(tmp_path) == []


@pytest.mark.slow
def test_a_download_that_breaks_off_leaves_nothing_and_the_next_try_succeeds(tmp_path):
    """Through the library's own client, from a hub on this machine."""
    write(tmp_path / "train.parquet", numbers(400))
    write(tmp_path / "test.parquet", numbers(40, seed=1))
    with hub({name: (tmp_path / name).read_bytes() for name in ("train.parquet", "test.parquet")}) as server:
        server.breaks_off = True
        status, _, errors = train_from_hub(tmp_path, server.url)
        left = kept(tmp_path)
        server.breaks_off = False
        whole, printed, words = train_from_hub(tmp_path, server.url)

    assert status == 1
    assert "someone/pets: cannot be had from the hub" in errors
    assert "run again" in errors
    assert "Traceback" not in errors
    assert left == []
    assert whole == 0, words
    assert "test accuracy" in printed


def train_from_hub(tmp_path, url):
    """The command line on someone's pets, in a process and a home of its own."""
    (tmp_path / "table.toml").write_text(RECIPE)
    arguments = ["train", tmp_path / "table.toml", "--out", tmp_path / "out", "--quiet"]
    settings = ["--set", "data.source=hub", "--set", f"data.path={fake_hub.NAME}"]
    environment = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home")}
    # The client waits long between its tries.
    with WarmProcess([*arguments, *settings], environment=environment, before=fake_hub.wait_for_nothing) as process:
        printed, errors = process.finish(300)
    return process.status, printed, errors


def kept(tmp_path):
    """Files in the home that are more than locks and tags."""
    files = (p for p in (tmp_path / "home").rglob("*") if p.is_file())
    return [str(p) for p in files if p.suffix != ".lock" and p.name != "CACHEDIR.TAG"]


def test_optional_packages_are_loaded_only_when_asked_for():
    """Whoever trains on an npz waits for none of them, nor needs them."""
    code = "import softkin_training.run, sys; print([m for m in ('datasets', 'pyarrow', 'kornia') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)

    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_quiet_command_shows_no_bar_of_any_library(tmp_path):
    """Neither ours nor those of the library that reads tables, though a person watches."""
    path = write(tmp_path / "train.csv", numbers())
    recipe(tmp_path, path, "data.test_rows=20")
    command = [str(Path(sys.executable).with_name("softkin-train")), "train", str(tmp_path / "table.toml"), "--quiet"]
    for override in ("data.source=csv", f"data.path={path}", "data.test_rows=20"):
        command += ["--set", override]
    environment = {k: v for k, v in os.environ.items() if "PROGRESS" not in k} | {"HF_HOME": str(tmp_path / "cache")}
    terminal, theirs = os.openpty()

    with os.fdopen(terminal, "rb"), os.fdopen(theirs, "rb"):
        done = subprocess.run([*command, "--out", str(tmp_path / "out")], env=environment, stderr=theirs, timeout=300)
        os.set_blocking(terminal, False)

        assert done.returncode == 0
        with pytest.raises(BlockingIOError):
            os.read(terminal, 1)


def test_where_nobody_watches_no_library_shows_a_bar(tmp_path, monkeypatch, capsys):
    """In a log it would be hundreds of lines; ours are not shown there either."""
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    watched = []
    monkeypatch.setattr("softkin_training.cli.write_rows", lambda arguments: watched.append(dict(os.environ)))

    assert main(["rows", "b", "--data", "d.csv", "--out", str(tmp_path / "x.npz")]) == 0
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("HF_DATASETS_DISABLE_PROGRESS_BARS")
    assert main(["rows", "b", "--data", "d.csv", "--out", str(tmp_path / "x.npz")]) == 0

    assert [environment.get("HF_DATASETS_DISABLE_PROGRESS_BARS") for environment in watched] == ["1", None]
