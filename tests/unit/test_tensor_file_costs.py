"""What it costs to look through an array: no memory that grows with it."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest

from softkin.tensor_file import TensorFile


@pytest.fixture
def zeros(tmp_path):
    """Opens a file of so many rows of 4 zeros, which takes no room on the disk."""

    def make(rows):
        header = json.dumps({"a": {"dtype": "F32", "shape": [rows, 4], "data_offsets": [0, 16 * rows]}}).encode()
        with (tmp_path / "f.safetensors").open("wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            f.truncate(8 + len(header) + 16 * rows)
        return TensorFile(tmp_path / "f.safetensors")

    return make


def test_a_large_array_is_looked_through_in_little_memory(zeros):
    """At once it would take a quarter of the array, beside a bank that may be larger than memory."""
    rows = 1 << 25
    tensors = zeros(rows)

    tracemalloc.start()
    try:
        found = tensors.take("a", "float32", (rows, 4), copy=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert found.nbytes == 512 << 20
    assert peak < found.nbytes / 10
