"""Tables that cannot be read: what the library says of them is told with the remedy, and with the key at fault."""

from __future__ import annotations

import gc
import resource
import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from softkin.errors import DataError, RecipeError
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.data_config import DataConfig
from softkin_training.tables import read_table

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def _left_open():
    """The library leaves a file open that it fails on half-way; elsewhere it would count against another test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def parquet(path, **columns):
    """A table, and its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def csv(path, *lines):
    """A table of these lines, and its path."""
    path.write_text("\n".join(lines) + "\n")
    return path


def source(path, **settings):
    """What `[data]` says of a table."""
    rows = {"test_rows": 0 if settings.get("test_path") or settings.get("test_split") else 1}
    return read_table(DataConfig(**({"source": "parquet", "path": str(path), "calibration_rows": 1} | rows | settings)))


def test_a_table_of_labels_alone_is_refused(tmp_path):
    """There is nothing to tell the classes by."""
    path = csv(tmp_path / "t.csv", "label", "x", "y")

    with pytest.raises(DataError) as refusal:
        source(path, source="csv")

    assert str(refusal.value) == f"{path}: has no column but 'label', which holds the labels; add those of the inputs"


def test_two_spellings_of_one_label_are_no_two_classes(tmp_path):
    """Who looks at them sees one: letters with their accents, and letters before them."""
    labels = ["caf\u00e9", "tea", "cafe\u0301"]
    path = csv(tmp_path / "t.csv", "a,label", *(f"{i},{labels[i % 3]}" for i in range(200)))

    with pytest.raises(DataError) as refusal:
        load_dataset(load_recipe("cifar10", ["data.source=csv", f"data.path={path}", "data.test_rows=50"]))

    assert str(refusal.value) == (
        f"{path}: has the classes 'cafe\\u0301' and 'caf\\xe9', one word in two spellings of Unicode; rename one"
    )


def test_only_of_csv_a_column_with_a_semicolon_is_taken_for_several(tmp_path):
    """In Parquet columns may be called anything, and nothing divides them."""
    path = parquet(tmp_path / "t.parquet", **{"width;height": [1], "kind": [0]})

    with pytest.raises(RecipeError) as refusal:
        source(path)

    assert str(refusal.value) == (
        f"data.label_column: {path} has no column 'label' in train; it has 'width;height', 'kind'"
    )


ONE_KIND = (
    "the first rows decide what a column holds, whole numbers, others or text: write it alike in all rows and tables, "
    "as 1.0 beside 1.5; nothing of it was kept"
)


@pytest.mark.usefixtures("_left_open")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # in the midst of it, too: it may be read twice
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["one,1"], "ArrowInvalid: Failed to parse string: 'one'"),
        (["1.5,1", *["1,1"] * 10_000, "one,1"], "ValueError: could not convert string to float: 'one'"),
        (["1.5,1", "1,one"], "ValueError: invalid literal for int() with base 10: 'one'"),
        (["1,1.5"], "ValueError: cannot safely convert passed user dtype of int64 for float64"),
    ],
    ids=["a word", "a word below a fraction", "a label below a fraction", "a fraction for a label"],
)
def test_a_csv_whose_column_changes_its_kind_far_below_is_refused_with_the_remedy(tmp_path, rows, reason):
    """The library reads some ten thousand rows at a time; the cure lies in rows that it took without a word."""
    path = csv(tmp_path / "t.csv", "a,label", *["1,1", "2,2"] * 6_000, *rows)

    with pytest.raises(DataError) as refusal:
        source(path, source="csv")

    assert str(refusal.value).startswith(f"{path}: cannot be read as csv ({reason}")
    assert str(refusal.value).endswith(f"); {ONE_KIND}")


def test_tables_whose_columns_are_of_different_kinds_are_refused_with_the_remedy(tmp_path):
    """Training rows of whole numbers, test rows of others; the same when they come in the hub's layout."""
    train = parquet(tmp_path / "pets" / "train.parquet", a=[1, 2], label=[0, 1])
    test = parquet(tmp_path / "pets" / "test.parquet", a=[1.5, 2], label=[0, 1])
    reason = "ArrowInvalid: Float value 1.500000 was truncated converting to int64"

    with pytest.raises(DataError) as refusal:
        source(train, test_path=str(test))
    with pytest.raises(DataError) as from_hub:
        source(tmp_path / "pets", source="hub", test_split="test")

    assert str(refusal.value) == f"{train} and {test}: cannot be read as parquet ({reason}); {ONE_KIND}"
    assert str(from_hub.value) == f"{tmp_path / 'pets'}: its files cannot be read ({reason}); {ONE_KIND}"


@pytest.mark.usefixtures("_left_open")
def test_a_full_disk_is_no_fault_of_the_table(tmp_path):
    """The library keeps every table a second time; where that fails, it is the cache that wants room."""
    path = csv(tmp_path / "t.csv", "a,b,label", *[f"{i}.5,{i}.25,{'xy'[i % 2]}" for i in range(60_000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # files cannot grow past it, as on a full disk
    try:
        with pytest.raises(DataError) as refusal:
            source(path, source="csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert str(refusal.value) == (
        f"{path}: cannot be kept in {tmp_path / 'cache'} (OSError: [Errno 27] File too large); make room there, or set "
        "HF_HOME to a larger disk"
    )
    assert len(source(path, source="csv").train) == 60_000


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_table(tmp_path, monkeypatch):
    """Here a file stands where its folder should be."""
    path = csv(tmp_path / "t.csv", "a,label", "1,x", "2,y")
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")

    with pytest.raises(DataError, match=r"t\.csv: cannot be kept in .*file/cache \(NotADirectoryError: .*HF_HOME to"):
        source(path, source="csv")


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_of_the_library_that_gives_no_reason_is_told_by_its_kind(tmp_path, monkeypatch, wrapped):
    """As where memory ends, while it reads or while it writes."""

    def fail(*_, **__):
        if wrapped:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from MemoryError()
        raise MemoryError

    monkeypatch.setattr(datasets, "load_dataset", fail)

    with pytest.raises(DataError, match=r"cannot be read as csv \(MemoryError: no reason given\); mend"):
        source(csv(tmp_path / "t.csv", "a,label", "1,x"), source="csv")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_csv_in_another_encoding_is_refused_with_the_one_it_takes(tmp_path, encoding):
    """As spreadsheets save it."""
    path = tmp_path / "t.csv"
    path.write_text("a,label\n1,caf\xe9\n2,y\n", encoding=encoding)

    with pytest.raises(
        DataError, match=r"cannot be read as csv \(Unicode.*\); save it as UTF-8; nothing of it was kep"
    ):
        source(path, source="csv")


def empty_csv(path):
    """Nothing but the names of columns."""
    return csv(path.with_suffix(".csv"), "a,label")


def empty_parquet(path):
    """The same."""
    return parquet(path.with_suffix(".parquet"), a=pa.array([], pa.int64()), label=pa.array([], pa.int64()))


@pytest.mark.usefixtures("_left_open")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("empty", [empty_csv, empty_parquet])
def test_a_table_without_rows_is_told_as_such(tmp_path, empty):
    """The library speaks of instructions and batch sizes; for training or for testing."""
    nothing = empty(tmp_path / "nothing")
    kind = nothing.suffix[1:]
    some = csv(tmp_path / "some.csv", "a,label", "1,0", "2,1")
    some = some if kind == "csv" else parquet(tmp_path / "some.parquet", a=[1, 2], label=[0, 1])
    told = r" \(.*\); one of its files has no rows: add some, or take it away; nothing of it was kept$"

    with pytest.raises(DataError, match=rf"^{nothing}: cannot be read as {kind}{told}"):
        source(nothing, source=kind)
    with pytest.raises(DataError, match=rf"^{some} and {nothing}: cannot be read as {kind}{told}"):
        source(some, source=kind, test_path=str(nothing))


def test_a_csv_of_nothing_at_all_has_no_rows_either(tmp_path):
    """Not even names."""
    (tmp_path / "t.csv").touch()

    with pytest.raises(DataError, match=r"t\.csv: cannot be read as csv \(.*\); one of its files has no rows: add so"):
        source(tmp_path / "t.csv", source="csv")


def test_a_damaged_file_in_the_hubs_layout_is_no_folder_in_another(tmp_path):
    """The layout is right; the file is what is wrong."""
    path = parquet(tmp_path / "pets" / "data" / "train.parquet", a=np.arange(1000.0), label=np.arange(1000) % 2)
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(DataError, match=rf"^{tmp_path / 'pets'}: its files cannot be read \(.*\); mend the file; noth"):
        source(tmp_path / "pets", source="hub", test_split="")


def test_a_path_that_is_longer_than_any_is_refused_like_another():
    """No disk takes such a name, nor can there be a data set of it."""
    with pytest.raises(DataError, match=r"x: no such file; data\.path and"):
        source("x" * 300, source="csv")
    with pytest.raises(DataError, match=r"x: cannot be had from the hub \(OSError: .*File name too long"):
        source("x" * 300, source="hub", test_split="")


@pytest.mark.parametrize("path", ["../pets", "my pets/of 2024", "a/b/c"])
def test_a_name_that_the_hub_cannot_have_is_no_matter_of_the_connection(tmp_path, monkeypatch, path):
    """Most often it is a folder that is not there."""
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=rf"^{path}: is no folder here, nor a name that the hub allows \(.*check d"):
        source(path, source="hub", test_split="")


def subsets(folder):
    """A data set with two subsets, as the hub lays them out."""
    for name in ("small", "large"):
        parquet(folder / name / "train.parquet", x=[1], label=[0])
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.parquet\n"
        for name in ("small", "large")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


@pytest.mark.parametrize("subset", ["", "huge"])
def test_a_subset_that_is_not_there_or_not_named_lists_those_that_are(tmp_path, subset):
    """By the key that names it; neither the connection nor the layout is at fault."""
    folder = subsets(tmp_path / "pets")

    with pytest.raises(RecipeError) as refusal:
        source(folder, source="hub", test_split="", subset=subset)

    assert str(refusal.value) == (
        f"data.subset is {subset!r}: {folder} has the subsets ['small', 'large']; name one of them"
    )
    assert len(source(folder, source="hub", test_split="", subset="large").train) == 1
