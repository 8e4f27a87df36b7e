"""What it costs to look through an array: neither memory that grows with it, nor much more time than the looking."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc

import numpy as np
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


def test_many_rows_are_looked_through_about_as_fast_as_at_once(zeros):
    """Row by row it would take a thousand times as long."""
    rows = 1 << 20
    tensors = zeros(rows)

    def seconds(work):
        start = time.process_time()
        work()
        return time.process_time() - start

    array = tensors.take("a", "float32", (rows, 4), copy=False)
    at_once = max(seconds(lambda: np.isfinite(array).all()) for _ in range(3))

    assert seconds(lambda: tensors.take("a", "float32", (rows, 4), copy=False)) < 100 * at_once
