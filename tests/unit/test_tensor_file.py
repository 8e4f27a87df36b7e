"""Arrays out of a safetensors file: mapped or copied, and refused where they are not what is asked for."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from softkin.errors import BundleError
from softkin.tensor_file import TensorFile


@pytest.fixture
def file(tmp_path):
    """Where an array `a` of 5 x 4 numbers lies behind one of another type."""
    save_file({"a": np.arange(20, dtype=np.float32).reshape(5, 4), "b": np.ones(3)}, tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "uint64", "int64", "int32", "int8", "uint8"])
@pytest.mark.parametrize("shape", [(3,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_arrays_come_back_as_they_were_saved(tmp_path, dtype, shape):
    """Of every type that a bundle holds; empty ones too, of which there is nothing to map."""
    array = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    save_file({"before": np.ones(3, np.uint8), "a": array}, tmp_path / "f")

    for copy in (True, False):
        found = TensorFile(tmp_path / "f").take("a", dtype, (None, *shape[1:]), copy=copy)
        assert (found.dtype, found.shape) == (array.dtype, shape)
        np.testing.assert_array_equal(found, array)


def test_a_copy_does_without_the_file_and_a_map_is_the_file(file):
    """Read only; what a caller keeps of a file that may be replaced, it copies."""
    tensors = TensorFile(file)
    copied, mapped = tensors.take("a", "float32", (5, 4)), tensors.take("a", "float32", (5, 4), copy=False)

    with file.open("r+b") as f:
        f.seek(tensors.offset("a"))
        f.write(struct.pack("<f", 7))

    assert (copied[0, 0], mapped[0, 0]) == (0, 7)
    assert copied.flags.writeable
    assert not mapped.flags.writeable


def test_a_file_that_is_replaced_meanwhile_is_read_to_its_end(file):
    """As a bundle is by a newer one: header and arrays of two files would be mixed."""
    tensors = TensorFile(file)
    save_file({"a": np.full((5, 4), 7, np.float32)}, file.with_name("other"))
    file.with_name("other").replace(file)

    found = tensors.take("a", "float32", (5, 4))
    file.unlink()

    np.testing.assert_array_equal(found, np.arange(20).reshape(5, 4))
    np.testing.assert_array_equal(tensors.take("b", "float64", (3,)), np.ones(3))


@pytest.mark.parametrize(
    ("dtype", "shape", "asked"),
    [
        ("float64", (5, 4), r"float64\[5, 4\]"),
        ("int32", (5, 4), r"int32\[5, 4\]"),
        ("float32", (None, 5), r"float32\[any, 5\]"),
        ("float32", (0, 4), r"float32\[0, 4\]"),
        ("float32", (None,), r"float32\[any\]"),
        ("float32", (5, 4, 1), r"float32\[5, 4, 1\]"),
    ],
)
def test_an_array_of_another_type_or_shape_is_refused(file, dtype, shape, asked):
    """A type of the same width would be taken for other numbers."""
    with pytest.raises(BundleError, match=rf"array 'a' is float32\[5, 4\], the manifest asks for {asked}"):
        TensorFile(file).take("a", dtype, shape)


def test_a_type_that_no_bundle_holds_is_refused(tmp_path):
    """NumPy has no name for it; nor may it pass for one of NumPy's, whatever is asked for."""
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))

    for asked in ("float16", "float64"):
        with pytest.raises(BundleError, match=rf"array 'a' is .*\[2\], the manifest asks for {asked}\[2\]"):
            TensorFile(tmp_path / "f").take("a", asked, (2,))


@pytest.mark.parametrize("data", [None, b"", b"no tensors here", struct.pack("<Q", 1 << 40) + b"{}"], ids=repr)
def test_what_is_no_such_file_is_refused(tmp_path, data):
    """By its name, and with the remedy."""
    if data is not None:
        (tmp_path / "f").write_bytes(data)

    with pytest.raises(BundleError, match=rf"{tmp_path}/f: not a readable safetensors file \(.+\); build"):
        TensorFile(tmp_path / "f")


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("block", [1, 32, 1 << 20], ids=["less than a row", "two rows", "all"])
def test_a_value_that_is_not_finite_is_found_in_any_block(file, monkeypatch, row, block):
    """They are looked through block by block, so that a bank larger than memory can be."""
    monkeypatch.setattr("softkin.tensor_file.FINITE_CHECK_BYTES", block)
    array = np.zeros((5, 4), np.float32)
    array[row, 3] = [np.nan, np.inf, -np.inf][row % 3]
    assert TensorFile(file).take("a", "float32", (5, 4)).shape == (5, 4)

    save_file({"a": array}, file)
    for copy in (True, False):
        with pytest.raises(BundleError, match="array 'a' has values that are not finite"):
            TensorFile(file).take("a", "float32", (5, 4), copy=copy)


def test_an_array_that_is_not_there_is_refused_by_name(file):
    """Whatever is asked of it, but for whether it is there."""
    tensors = TensorFile(file)

    assert [name in tensors for name in "abc"] == [True, True, False]
    for ask in (tensors.offset, tensors.describe, lambda name: tensors.take(name, "float32", (5, 4))):
        with pytest.raises(BundleError, match=r"f\.safetensors: has no array 'c'"):
            ask("c")
