"""Columns of CSV that are whole numbers by their first rows, and others further down or in the next file."""

from __future__ import annotations

import gc

import datasets
import numpy as np
import pytest

from softkin.errors import DataError
from softkin_training.data_config import DataConfig
from softkin_training.tables import read_table

# The library leaves a file open that it fails on half-way.
pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")]

FIRST_ROWS = [f"{i},{2 * i},{i % 2}" for i in range(10_000)]
"""As many as decide what a column holds."""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    gc.collect()  # or it counts against another test


def write(path, *rows, columns="a,b,label"):
    """A CSV file of these rows."""
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def read(path, test_path=None, **settings):
    """What `[data]` makes of it."""
    rows = {"test_path": str(test_path), "test_rows": 0} if test_path else {"test_rows": 1}
    return read_table(DataConfig(source="csv", path=str(path), calibration_rows=1, **rows, **settings))


def test_a_fraction_far_below_makes_its_column_one_of_fractions(tmp_path):
    """As it would in the first row; labels stay whole numbers, and the others keep all of their digits."""
    far_below = read(write(tmp_path / "t.csv", *FIRST_ROWS, "0.1,7,1")).train
    at_first = read(write(tmp_path / "u.csv", "0.1,7,1", *FIRST_ROWS)).train

    assert far_below.dtype == at_first.dtype == np.float64
    order = np.r_[len(FIRST_ROWS), : len(FIRST_ROWS)]
    assert np.array_equal(far_below.read(order), at_first.x)
    assert np.array_equal(far_below.y[order], at_first.y)


def test_words_are_classes_above_fractions_and_below(tmp_path):
    """And whole numbers in all rows stay such."""
    words = [f"{i},{2 * i},{'xy'[i % 2]}" for i in range(10_000)]

    mixed = read(write(tmp_path / "t.csv", *words, "0.5,7,x"))
    whole = read(write(tmp_path / "u.csv", *words, "5,7,x"))

    assert mixed.class_names == whole.class_names == ("x", "y")
    assert (mixed.train.dtype, whole.train.dtype) == (np.float64, np.int64)
    assert mixed.train.read(np.array([-1])).tolist() == [[0.5, 7.0]]


@pytest.mark.parametrize("fraction_in", [0, 1, 2])
def test_files_of_one_pattern_may_differ_in_it(tmp_path, fraction_in):
    """In whichever of them it is, and one may be empty, or have its columns in another order."""
    write(tmp_path / "0.csv", f"{0.5 if fraction_in == 0 else 0},1,0")
    write(tmp_path / "1.csv", f"1,{2.5 if fraction_in == 1 else 2},1", columns="b,a,label")
    write(tmp_path / "2.csv")
    write(tmp_path / "3.csv", f"{3.5 if fraction_in == 2 else 3},4,1")

    expected = np.array([[0, 1], [2, 1], [3, 4]]) + 0.5 * np.outer(np.arange(3) == fraction_in, [1, 0])
    assert read(tmp_path / "?.csv").train.x.tolist() == expected.tolist()


def test_test_rows_may_have_fractions_where_training_rows_have_none(tmp_path):
    """Both are then of one type, as a network takes them."""
    found = read(write(tmp_path / "t.csv", "1,2,0", "3,4,1"), write(tmp_path / "test.csv", "0.5,2,1"))

    assert found.train.x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.test.x.tolist() == [[0.5, 2.0]]
    assert found.train.dtype == found.test.dtype == np.float64


@pytest.mark.parametrize(
    ("columns", "row", "told"),
    [
        ("a,b,c,label", "1,2,3,0", "one has 'c' more and lacks nothing"),
        ("a,label", "1,0", "one has nothing more and lacks 'b'"),
        ("a,c,label", "1,2,0", "one has 'c' more and lacks 'b'"),
    ],
)
@pytest.mark.parametrize("first", [["1,2,0"], [*FIRST_ROWS, "0.5,2,1"]], ids=["alone", "beside a fraction"])
def test_files_of_other_columns_are_refused_by_their_columns(tmp_path, first, columns, row, told):
    """None is dropped because another column was read anew."""
    write(tmp_path / "0.csv", *first)
    write(tmp_path / "1.csv", row, columns=columns)

    with pytest.raises(DataError) as refusal:
        read(tmp_path / "?.csv")

    assert str(refusal.value) == (
        f"{tmp_path / '?.csv'}: all tables must have the columns of the first, and {told}; mend the file, nothing of "
        "it was kept"
    )


def test_keys_stay_whole_numbers_where_others_become_fractions(tmp_path):
    """Or the last digits of long ones would be lost."""
    keyed = [f"{2**53 + 1 + i},{row}" for i, row in enumerate(FIRST_ROWS)]
    path = write(tmp_path / "t.csv", *keyed, "9,0.5,7,1", columns="key,a,b,label")

    found = read(path, name_column="key")

    assert found.train.dtype == np.float64
    assert found.naming(np.array([0, 10_000])) == [str(2**53 + 1), "9"]


def test_lines_that_end_with_a_comma_are_refused_where_the_first_does_not(tmp_path):
    """In either table: every value would stand under the name of the next column."""
    rows = [f"{i}.5,{i % 2}.25,{i % 2}" for i in range(40)]
    right = write(tmp_path / "right.csv", *rows)
    wrong = write(tmp_path / "wrong.csv", *(f"{row}," for row in rows))
    named = write(tmp_path / "named.csv", *(f"row {i},{row}" for i, row in enumerate(rows)))  # as R does

    for tables, said in {
        (wrong,): "lines end with a comma, and the first line does not",
        (wrong, wrong): "lines end with a comma, and the first line does not",
        (named, wrong): "lines end with a comma, and the first line does not",
        (right, wrong): "all tables must have the columns of the first",
    }.items():
        with pytest.raises(DataError, match=rf"wrong\.csv: {said}"):
            read(*tables, input_columns=["a", "b"])


def test_words_beside_fractions_far_below_stay_words(tmp_path):
    """In a column that is neither input nor label nor name."""
    rows = [f"{row},fine" for row in FIRST_ROWS]

    found = read(write(tmp_path / "t.csv", *rows, "0.5,7,1,odd", columns="a,b,label,note"), input_columns=["a", "b"])

    assert (found.train.dtype, len(found.train)) == (np.float64, 10_001)
