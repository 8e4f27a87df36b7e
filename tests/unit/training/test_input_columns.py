"""Columns of an Arrow table become one array."""

from __future__ import annotations

import io
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from softkin.errors import DataError
from softkin.manifest import INPUT_DTYPES
from softkin_training.image_reader import ImageReader
from softkin_training.input_columns import InputColumns

pytestmark = pytest.mark.training


def read(columns, *, features=None, first_row=0):
    """All columns of a table, as inputs."""
    table = pa.table(columns)
    inputs = InputColumns(dict.fromkeys(columns) | (features or {}), list(columns), ImageReader("L", []), "t")
    return inputs.read(table, first_row)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("bool", "uint8"),
        ("int8", "int32"),
        ("int16", "int32"),
        ("uint16", "int32"),
        ("uint32", "int64"),
        ("float16", "float32"),
        ("uint8", "uint8"),
        ("int64", "int64"),
        ("float64", "float64"),
    ],
)
def test_numbers_of_any_kind_become_those_that_a_detector_takes(kind, dtype):
    """Wide enough for each."""
    largest = 1 if kind == "bool" else (9.5 if kind.startswith("float") else np.iinfo(kind).max)
    x = np.array([0, largest, 1], kind)

    found = read({"a": pa.array(x), "b": pa.array(x)})

    assert found.dtype == dtype
    assert found.dtype.name in INPUT_DTYPES
    np.testing.assert_array_equal(found, np.stack([x, x], axis=1))


@pytest.mark.parametrize(
    "make", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)], ids=["list", "large", "fixed"]
)
def test_lists_of_any_kind_are_axes(make):
    """Beside a number they are features like it."""
    lists = pa.array([[1.0, 2.0], [3.0, 4.0]], make(pa.float64()))

    assert read({"a": lists}).tolist() == [[1, 2], [3, 4]]
    assert read({"a": lists, "b": pa.array([5.0, 6.0])}).tolist() == [[1, 2, 5], [3, 4, 6]]
    assert read({"b": pa.array([5.0, 6.0])}).tolist() == [[5], [6]]


def test_a_value_that_is_missing_is_named_by_its_row():
    """Counted from the first of the table, of which a part is read at a time."""
    with pytest.raises(DataError, match="t: column 'b' has no value in row 102; fill it in, or drop the row"):
        read({"a": pa.array([1, 2, 3]), "b": pa.array([1, 2, None])}, first_row=100)


def png(value):
    """An image of four pixels."""
    out = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(out, "png")
    return out.getvalue()


def images(*values):
    """A column as the library stores images: bytes, or the path of a file."""
    return {
        "i": pa.array(
            [{"bytes": b, "path": p} for b, p in values], pa.struct({"bytes": pa.binary(), "path": pa.string()})
        )
    }


IMAGE = {"bytes": None, "path": None}
"""What describes such a column."""


def test_images_are_read_from_bytes_or_from_files(tmp_path):
    """Whichever there is."""
    (tmp_path / "b.png").write_bytes(png(7))

    found = read(images((png(3), None), (None, str(tmp_path / "b.png"))), features={"i": IMAGE})

    assert found.reshape(2, -1).tolist() == [[3] * 4, [7] * 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((None, None), "t: image in row 101 is empty; fill it in, or drop the row"),
        ((b"no image", "a.png"), r"t: image in row 101 \(a\.png\): cannot be read"),
    ],
)
def test_an_image_that_is_none_is_named_by_its_row(value, message):
    """And by its file where it has one."""
    with pytest.raises(DataError, match=message):
        read(images((png(3), None), value), features={"i": IMAGE}, first_row=100)


def test_an_image_stands_alone():
    """Beside numbers it is refused, whichever comes first."""
    features = {"n": None, "i": IMAGE}

    with pytest.raises(DataError, match=r"column 'i' holds images, .* there are \['n'\] too; say"):
        InputColumns(features, ["n", "i"], ImageReader("L", []), "t")


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_bytes_are_images(kind):
    """As Parquet files that others wrote have them."""
    feature = type("Value", (), {"dtype": kind})()
    column = pa.array([png(1), png(2)], getattr(pa, kind)())

    assert read({"i": column}, features={"i": feature}).reshape(2, -1).tolist() == [[1] * 4, [2] * 4]


class Pair(pa.ExtensionType):
    """Two numbers by another name, as the library's arrays of fixed shape are lists."""

    def __init__(self):
        super().__init__(pa.list_(pa.int64(), 2), "pair")

    def __arrow_ext_serialize__(self):
        """Nothing to say."""
        return b""


def test_arrays_of_the_librarys_own_types_are_what_they_hold():
    """Those of a type that Arrow does not know."""
    column = pa.ExtensionArray.from_storage(Pair(), pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)))

    assert read({"a": column}).tolist() == [[1, 2], [3, 4]]


def test_lists_of_which_one_is_missing_inside_another_are_refused():
    """As rows of different lengths are."""
    lists = pa.array([[[1], None], [[2], [3]]], pa.list_(pa.list_(pa.int64())))

    with pytest.raises(DataError, match=r"column 'a' has rows of \[1, None\] numbers; all must be as long"):
        read({"a": lists})


@pytest.mark.parametrize(("shorter", "longer"), [([1, 2], [1, 2, 3]), ([[1], [2]], [[1, 2], [3, 4]])])
def test_lists_that_grow_from_one_part_of_a_table_to_the_next_are_refused(shorter, longer):
    """Each part by itself is even: what was read before counts too."""
    inputs = InputColumns({"a": None}, ["a"], ImageReader("L", []), "t")
    inputs.read(pa.table({"a": [shorter, shorter]}), 0)

    before, now = (re.escape(str(list(np.shape(x)))) for x in (shorter, longer))
    words = f"^t: column 'a' has rows of {before} numbers before row 2 and of {now} from there on; all must be as long"
    with pytest.raises(DataError, match=words):
        inputs.read(pa.table({"a": [longer]}), 2)


REFUSED = {
    "rows of five lengths": (
        [[1] * n for n in (5, 4, 3, 2, 1)],
        r"column 'a' has rows of \[1, 2, 3, 4\] numbers; all must",
    ),
    "lists of nothing": (pa.array([[], []], pa.list_(pa.int8())), "column 'a' has lists of no numbers; leave it out"),
    "numbers missing in lists": ([[1, None], [2, 3]], "column 'a' has lists with missing numbers; fill them in"),
    "words": (["x", "y"], "column 'a' is string, which is neither numbers nor images; leave it out"),
    "lists of words": ([["x"], ["y"]], "column 'a' is list<.*>, which is neither numbers nor images; leave it out"),
    "a structure": ([{"u": 1}, {"u": 2}], "column 'a' is struct<u: int64>, which is neither numbers nor images"),
}


@pytest.mark.parametrize(("column", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_array_of_numbers_is_refused(column, message):
    """By the name of its column; a structure is an image where it has the library's two fields, and no other."""
    with pytest.raises(DataError, match=f"^t: {message}"):
        read({"a": column}, features={"a": {"u": None}} if "struct" in message else None)


def test_maps_keep_their_shape_and_stand_alone():
    """Beside other inputs there would be no telling which axis is which."""
    x = np.arange(12).reshape(2, 2, 3)
    maps = pa.array(x.tolist())

    np.testing.assert_array_equal(read({"a": maps}), x)
    with pytest.raises(
        DataError, match=r"column 'a' holds 2 axes a row, .* the only input; say data\.input_columns = \['a'"
    ):
        read({"b": pa.array([1, 2]), "a": maps})


@pytest.mark.parametrize(
    ("column", "found"),
    [
        ([*["1.5", "2"] * 200, None, "x", "y"], (401, "x")),
        (pa.array(["n/a", "1"], pa.large_string()), (0, "n/a")),
        (["x", "y", "3"], (0, "x")),
        (["x", "y", None], None),
        (["1", "2", None], None),
        ([1.0, 2.0], None),
    ],
    ids=["far down", "first", "before any number", "words", "numbers as text", "numbers"],
)
def test_the_cell_that_makes_text_of_a_column_of_numbers_is_named(column, found):
    """To leave the column out would be no remedy; where it lies among millions nobody could see."""
    table = pa.table({"a": column})
    inputs = InputColumns({"a": None}, ["a"], ImageReader("RGB", []), "t")
    if found is None:
        inputs.refuse_stray_text(table)
        return
    with pytest.raises(DataError, match=f"^t: column 'a' is text, because row {found[0]} has '{found[1]}'; put a num"):
        inputs.refuse_stray_text(table)
