"""Banks in float16 and int8."""

from __future__ import annotations

import numpy as np
import pytest

from softkin import mass
from softkin.bank import PADDING_LABEL, PADDING_OFFSET, pack
from softkin.errors import DataError
from softkin.precision import BANK_LEVELS, QUERY_LEVELS, QUERY_ZERO_POINT, reduce_precision


def packed(z, metric):
    """A bank of one layer and two classes, T = 1."""
    labels = np.arange(len(z)) % 2
    return pack({"a": z}, labels, np.arange(len(z)), num_classes=2, temperatures={"a": 1.0}, metrics={"a": metric})


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_offsets_make_products_distances_of_the_rounded_rows(metric, precision):
    """z.b' + offset' = z.b + offset - (|z - b'|^2 - |z - b|^2) / 2: exact for the rounded row, whatever the query."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(70, 9)).astype(np.float32)
    z = mass.unit_rows(z).astype(np.float32) if metric == "cosine" else z
    query = rng.normal(size=9)
    bank = packed(z, metric)
    real = bank.labels != PADDING_LABEL
    before, after = bank.layers["a"], reduce_precision(bank, precision).layers["a"]

    b, rounded = ((layer.representations(real) - layer.center).astype(np.float64) for layer in (before, after))
    found = rounded @ query + after.row_offsets()[real]

    moved = np.square(query - rounded).sum(axis=1) - np.square(query - b).sum(axis=1)
    np.testing.assert_allclose(found, b @ query + before.row_offsets()[real] - moved / 2, atol=2e-5)


@pytest.mark.parametrize(("precision", "step"), [("float16", 2**-11), ("int8", 0.5 / 63)])
def test_rows_are_rounded_to_the_nearest_step(precision, step):
    """Relative to each row's largest number, so that rows of any scale fare alike."""
    z = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32) * np.logspace(-3, 3, 64)[:, None]
    z -= z.mean(axis=0)
    bank = packed(z.astype(np.float32), "squared_euclidean")
    real = bank.labels != PADDING_LABEL
    before, after = (b.layers["a"] for b in (bank, reduce_precision(bank, precision)))

    b = before.representations(real) - before.center
    error = np.abs(after.representations(real) - after.center - b)

    assert (error <= 1.01 * step * np.abs(b).max(axis=1, keepdims=True) + 1e-7).all()


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_padding_and_zero_rows_stay_what_they_are(precision):
    """Padding keeps its mass of nothing; a dead row stays zero and finite."""
    z = np.array([[0, 0], [0.6, 0.8], [1, 0]], np.float32)

    layer = reduce_precision(packed(z, "cosine"), precision).layers["a"]

    assert (layer.row_offsets() == PADDING_OFFSET).sum() == 2 * 64 - 3
    assert np.isfinite(layer.representations(slice(None))).all()
    assert layer.representations(slice(0, 1)).tolist() == [[0, 0]]


def test_no_pair_of_products_leaves_16_bits():
    """What processors without VNNI add up in one step."""
    assert np.iinfo(np.int16).max >= 2 * (QUERY_ZERO_POINT + QUERY_LEVELS) * BANK_LEVELS
    assert np.iinfo(np.uint8).max >= QUERY_ZERO_POINT + QUERY_LEVELS
    assert QUERY_ZERO_POINT - QUERY_LEVELS >= 0


def test_float32_is_the_bank_itself():
    """Nothing is copied."""
    bank = packed(np.eye(2, dtype=np.float32), "cosine")

    assert reduce_precision(bank, "float32") is bank


def test_rows_too_large_for_float16_are_refused():
    """With the value and the remedy."""
    bank = packed(np.array([[1e6, 0], [-1e6, 0], [1e6, 0]], np.float32), "squared_euclidean")

    with pytest.raises(DataError, match=r"holds 2e\+06, too large for float16; use float32 or int8"):
        reduce_precision(bank, "float16")


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_bank_of_several_blocks_is_rounded_row_by_row(monkeypatch, precision):
    """Blocks bound the memory of rounding and change nothing, the last and shorter one included."""
    bank = packed(np.random.default_rng(0).normal(size=(150, 3)).astype(np.float32), "squared_euclidean")
    whole = reduce_precision(bank, precision).layers["a"]
    monkeypatch.setattr("softkin.precision.BLOCK_ROWS", 100)

    found = reduce_precision(bank, precision).layers["a"]

    assert len(found.rows) % 100
    np.testing.assert_array_equal(found.representations(slice(None)), whole.representations(slice(None)))
    np.testing.assert_array_equal(found.row_offsets(), whole.row_offsets())
