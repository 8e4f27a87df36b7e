"""Tables: labels of every kind, rows beyond those read at once, and what the cache and the hub are asked for."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fake_hub import COMMIT, NAME, hub
from softkin.errors import DataError, RecipeError
from softkin_training.config import load_recipe
from softkin_training.data_config import DataConfig
from softkin_training.tables import READ_AT_ONCE, read_table

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path, **columns):
    """A table, and its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def source(path, **settings):
    """What `[data]` says of a table."""
    rows = {"test_rows": 0 if settings.get("test_path") or settings.get("test_split") else 1}
    return read_table(DataConfig(**({"source": "parquet", "path": str(path), "calibration_rows": 1} | rows | settings)))


LABELS = {
    "whole numbers": (pa.array([10, 9, 10], pa.int8()), ("9", "10"), [1, 0, 1]),
    "without sign": (pa.array([7, 300, 7], pa.uint16()), ("7", "300"), [0, 1, 0]),
    "yes and no": (pa.array([True, False, True]), ("False", "True"), [1, 0, 1]),
    "words": (pa.array(["b", "a", "b"]), ("a", "b"), [1, 0, 1]),
    "large strings": (pa.array(["b", "a", "b"], pa.large_string()), ("a", "b"), [1, 0, 1]),
    "views of strings": (pa.array(["b", "a", "b"], pa.string_view()), ("a", "b"), [1, 0, 1]),
    "a space that tells nothing apart": (pa.array(["b ", "a", "b "]), ("a", "b "), [1, 0, 1]),
}


@pytest.mark.parametrize(("column", "names", "y"), LABELS.values(), ids=LABELS)
def test_labels_of_every_kind_are_classes_in_the_order_of_their_values(tmp_path, column, names, y):
    """Numbers as numbers, not as text."""
    found = source(write(tmp_path / "t.parquet", a=[1.0, 2.0, 3.0], label=column))

    assert found.class_names == names
    assert found.train.y.tolist() == y


def test_rows_beyond_those_read_at_once_come_in_their_order(tmp_path):
    """Ids of test rows follow those of training rows."""
    n = 2 * READ_AT_ONCE + 10
    train = write(tmp_path / "a.parquet", x=np.arange(n), label=np.arange(n) % 2)
    test = write(tmp_path / "b.parquet", x=[7, 8], label=[1, 0])

    found = source(train, test_path=str(test))

    np.testing.assert_array_equal(found.train.read(np.arange(n))[:, 0], np.arange(n))
    assert found.train.ids.tolist() == list(range(n))
    assert found.test.ids.tolist() == [n, n + 1]
    assert found.test.read(np.arange(2)).tolist() == [[7], [8]]
    assert found.test.y.tolist() == [1, 0]


def test_a_row_beyond_those_read_at_once_is_named_by_its_place_in_the_table(tmp_path):
    """Not by that among those it was read with."""
    n = READ_AT_ONCE + 10
    x = pa.array([None if i == READ_AT_ONCE + 3 else 1.0 for i in range(n)])

    with pytest.raises(DataError, match=rf"t\.parquet, train: column 'x' has no value in row {READ_AT_ONCE + 3};"):
        source(write(tmp_path / "t.parquet", x=x, label=np.arange(n) % 2))


REFUSED = {
    "unknown label, few known": (
        {"x": [1], "label": ["z"]},
        "b.parquet, test: row 0 has the label 'z', which is none of the 10 labels of train: 'a', 'b', 'c', 'd', 'e', "
        "'f', 'g', 'h', 'i', 'j'",
    ),
    "labels of another type": ({"x": [1], "label": [True]}, "b.parquet, test: row 0 has the label 'true', which"),
    "another column": (
        {"y": [1], "label": ["a"]},
        "{folder}/a.parquet and {folder}/b.parquet: all tables must have the columns of the first, and one has 'y' "
        "more and lacks 'x'; mend the file, nothing of it was kept",
    ),
    "many more columns": (
        {name: [1] for name in "fedcbax"} | {"label": ["a"]},
        "one has 'a', 'b', 'c', 'd' more and lacks nothing;",
    ),
    "one column less": ({"label": ["a"]}, "b.parquet, test: column 'x' has no value in row 0; fill it in"),
    "no rows": (
        {"x": pa.array([], pa.int64()), "label": pa.array([], pa.string())},
        "{folder}/a.parquet and {folder}/b.parquet: cannot be read as parquet (",
    ),
}


@pytest.mark.parametrize(("test", "message"), REFUSED.values(), ids=REFUSED)
def test_test_rows_that_do_not_fit_the_training_rows_are_refused(tmp_path, test, message):
    """With what is other than there."""
    train = write(tmp_path / "a.parquet", x=np.arange(10), label=list("abcdefghij"))

    with pytest.raises(DataError) as refusal:
        source(train, test_path=str(write(tmp_path / "b.parquet", **test)))

    assert message.format(folder=tmp_path) in str(refusal.value)
    assert "..." not in str(refusal.value)
    assert "rename a class" not in str(refusal.value)


def test_of_many_labels_the_first_ten_are_listed(tmp_path):
    """There may be thousands."""
    train = write(tmp_path / "a.parquet", x=np.arange(11), label=np.arange(11))
    test = write(tmp_path / "b.parquet", x=[1], label=[99])

    with pytest.raises(DataError, match=r"of the 11 labels of train: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 \.\.\.$"):
        source(train, test_path=str(test))


@pytest.mark.parametrize("name", ["Unnamed: 0", "__index_level_0__"])
def test_row_numbers_of_pandas_are_refused_unless_they_are_asked_for(tmp_path, name):
    """As inputs they tell training rows from all others."""
    path = write(tmp_path / "t.parquet", **{name: [0, 1, 2], "a": [5, 6, 7], "label": [0, 1, 0]})

    with pytest.raises(RecipeError, match=rf"has a column '{name}', row numbers .*: data\.input_columns = \['a'\]$"):
        source(path)
    assert source(path, input_columns=[name]).train.read(np.arange(3)).tolist() == [[0], [1], [2]]
    assert source(path, input_columns=["a"]).train.read(np.arange(3)).tolist() == [[5], [6], [7]]


def test_files_of_folders_within_folders_are_found_by_a_pattern(tmp_path):
    """In the order of their paths; a folder itself is no file."""
    write(tmp_path / "in" / "b" / "1.parquet", x=[1], label=[1])
    write(tmp_path / "in" / "a" / "c" / "2.parquet", x=[2], label=[0])

    found = source(tmp_path / "in" / "**" / "*.parquet")

    assert found.train.read(np.arange(2)).tolist() == [[2], [1]]
    with pytest.raises(DataError, match=r"in/a: no such file; data\.path and data\.test_path name a file"):
        source(tmp_path / "in" / "*")


def test_a_table_that_was_read_before_is_read_again_where_anything_else_is_asked_of_it(tmp_path):
    """Rows are kept decoded: those of other columns, colours or sizes are others."""
    image = pa.array([png(4), png(4)], pa.binary())
    path = write(tmp_path / "t.parquet", a=[1, 2], b=[3, 4], label=[0, 1], image=image)
    both = np.arange(2)

    assert source(path, input_columns=["a", "b"]).train.read(both).tolist() == [[1, 3], [2, 4]]
    assert source(path, input_columns=["b", "a"]).train.read(both).tolist() == [[3, 1], [4, 2]]
    assert source(path, input_columns=["image"]).train.read(both).shape == (2, 4, 4, 3)
    assert source(path, input_columns=["image"], image_mode="L").train.read(both).shape == (2, 4, 4)
    assert source(path, input_columns=["image"], image_mode="L", image_size=[2, 3]).train.read(both).shape == (2, 2, 3)


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_tables_are_told_apart_though_the_library_would_keep_them_in_memory(tmp_path, monkeypatch, kind):
    """As HF_DATASETS_IN_MEMORY_MAX_SIZE has it do: decoded rows are kept by the files that they come from."""
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 10**9)

    def first(name, x):
        path = write(tmp_path / name / "train.parquet", x=[x, 0], label=[0, 1])
        found = source(path) if kind == "parquet" else source(path.parent, source="hub", test_split="")
        return found.train.read(np.arange(1)).tolist()

    assert [first("a", 1), first("b", 2)] == [[[1]], [[2]]]


def png(size):
    """A square image."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (10, 200, 30)).save(file, "png")
    return file.getvalue()


def subsets(folder):
    """A data set with two subsets, as the hub lays them out: each of its own splits."""
    for name, rows in (("small", [1]), ("large", [1, 2, 3])):
        write(folder / name / "train.parquet", x=rows, label=[0] * len(rows))
        write(folder / name / "other.parquet", x=[9], label=[0])
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.parquet\n"
        f"  - split: other\n    path: {name}/other.parquet\n"
        for name in ("small", "large")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def test_a_subset_and_its_splits_are_those_asked_for(tmp_path):
    """By the names that they have on the hub."""
    folder = subsets(tmp_path / "pets")

    found = source(folder, source="hub", subset="large", test_split="other")
    turned = source(folder, source="hub", subset="small", train_split="other", test_split="train")

    assert (len(found.train), len(found.test)) == (3, 1)
    assert turned.train.read(np.arange(1)).tolist() == [[9]]
    assert turned.test.read(np.arange(1)).tolist() == [[1]]
    assert source(folder, source="hub", subset="small", test_split="").test is None


@pytest.mark.parametrize("key", ["train_split", "test_split"])
def test_a_split_that_is_not_there_is_refused_by_its_key(tmp_path, key):
    """With those that there are."""
    splits = {"train_split": "train", "test_split": "other"} | {key: "dev"}

    with pytest.raises(RecipeError, match=rf"data\.{key}: .*pets has no split 'dev'; it has 'other', 'train'; wit"):
        source(subsets(tmp_path / "pets"), source="hub", subset="small", **splits)


def test_what_is_wrong_with_a_file_is_said_in_the_words_of_its_cause(tmp_path):
    """The library's own error says no more than that there is one."""
    path = tmp_path / "t.csv"
    path.write_text('x,label\n1,a\n"2,b\n')

    with pytest.raises(DataError) as refusal:
        source(path, source="csv")

    assert f"{path}: cannot be read as csv (ParserError: " in str(refusal.value)
    assert "DatasetGenerationError" not in str(refusal.value)


def test_a_recipe_says_which_column_holds_the_labels(tmp_path):
    """The key that names it is the one at fault."""
    path = write(tmp_path / "t.parquet", a=[1, 2], kind=["u", "v"])

    assert source(path, label_column="kind").class_names == ("u", "v")
    with pytest.raises(RecipeError, match=r"data\.label_column: .*t\.parquet has no column 'label' in train; it has '"):
        source(path)
    with pytest.raises(RecipeError, match=r"data\.label_column: "):
        load_and_read(tmp_path, path)


@pytest.mark.parametrize(("mark", "said"), [(";", "';'"), ("\t", r"'\t'"), ("|", "'|'")])
def test_a_csv_that_divides_columns_by_something_else_is_told_so(tmp_path, mark, said):
    """As spreadsheets write it where numbers have commas; the key at fault is that of the column."""
    path = tmp_path / "t.csv"
    path.write_text("\n".join(mark.join(row) for row in (("a", "b", "label"), ("1,5", "2", "x"), ("3,5", "4", "y"))))

    with pytest.raises(RecipeError) as refusal:
        source(path, source="csv", input_columns=["a"])

    assert str(refusal.value) == (
        f"data.input_columns: {path} has no column 'a' in train; its first line divides columns by {said}: write it "
        "with commas, and points in numbers"
    )


def load_and_read(tmp_path, path):
    """Through a recipe, as a command does."""
    return read_table(load_recipe("cifar10", ["data.source=parquet", f"data.path={path}", "data.test_rows=1"]).data)


@pytest.mark.slow
def test_a_data_set_or_a_revision_that_the_hub_does_not_have_is_refused_as_such(tmp_path):
    """The connection is not to blame; the revision that there is, is read."""
    files = {f"{split}.parquet": write(tmp_path / f"{split}.parquet", x=[1], label=[0]) for split in ("train", "test")}
    code = (
        "import json, sys\nfrom softkin.errors import DataError\nfrom softkin_training.data_config import DataConfig\n"
        "from softkin_training.tables import read_table\nfor settings in json.loads(sys.argv[1]):\n"
        "    try: print('rows', len(read_table(DataConfig(source='hub', calibration_rows=1, **settings)).train))\n"
        "    except DataError as e: print(e)"
    )
    asked = [{"path": NAME, "revision": COMMIT}, {"path": NAME, "revision": "v9"}, {"path": "someone/connect-four"}]
    with hub({name: path.read_bytes() for name, path in files.items()}) as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", code, json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=True)

    found, *refused = done.stdout.splitlines()
    assert found == "rows 1"
    for path, line in zip((NAME, "someone/connect-four"), refused, strict=True):
        assert line.startswith(f"{path}: the hub has no such data set, or it is private (DatasetNotFoundError: ")
        assert line.endswith("check data.path, data.subset and data.revision, or log in with `hf auth login`")


NAMES = {
    "words": (pa.array(["b/1", None, "a"]), ["b/1", "", "a"]),
    "views of strings": (pa.array(["b/1", None, "a"], pa.string_view()), ["b/1", "", "a"]),
    "dictionary": (pa.array(["b/1", None, "a"]).dictionary_encode(), ["b/1", "", "a"]),
    "whole numbers": (pa.array([2**60 + 1, 0, -3]), [str(2**60 + 1), "0", "-3"]),
    "whole numbers with a gap": (pa.array([7.0, None, 12.0]), ["7", "", "12"]),
    "dates": (pa.array([0, 1, None], pa.date32()), ["1970-01-01", "1970-01-02", ""]),
}


@pytest.mark.parametrize(("column", "names"), NAMES.values(), ids=NAMES)
def test_rows_are_named_by_a_column_that_is_no_input(tmp_path, column, names):
    """In the order in which they are asked for."""
    path = write(tmp_path / "t.parquet", a=[1.0, 2.0, 3.0], label=["x", "y", "x"], key=column)

    found = source(path, name_column="key")

    assert found.input_columns == ("a",)
    assert [*found.naming(np.array([2, 0, 1, 2]))] == [names[i] for i in (2, 0, 1, 2)]
    assert source(path, name_column="key", input_columns=["a"]).naming is not None
    assert source(path, input_columns=["a"]).naming is None
