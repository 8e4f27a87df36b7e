"""The tiled layout of the bank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softkin import bank as banks
from softkin.bank import LARGE_TILE_ROWS, PADDING_LABEL, TILE_ROWS, pack, tiles_of
from softkin.errors import DataError


def packed(labels, metric="squared_euclidean", **changes):
    """A bank over random representations of width 3."""
    n = len(labels)
    arguments = {
        "representations": {"a": np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)},
        "labels": np.asarray(labels),
        "ids": np.arange(n) + 100,
        "num_classes": max(labels, default=0) + 1,
        "temperatures": {"a": 0.5},
        "metrics": {"a": metric},
    } | changes
    return pack(arguments.pop("representations"), arguments.pop("labels"), arguments.pop("ids"), **arguments)


@given(st.lists(st.integers(1, 3 * LARGE_TILE_ROWS), min_size=1, max_size=5), st.integers(0, 99))
@settings(deadline=None)
def test_tiles_hold_one_class_and_no_row_is_lost(counts, seed):
    """Whole tiles of one class, large ones first and without padding; every id once, its label beside it."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))

    bank = packed(labels.tolist())

    tiles = bank.labels.reshape(-1, TILE_ROWS)
    assert ((tiles == tiles[:, :1]) | (tiles == PADDING_LABEL)).all()
    assert bank.large_rows >= sum(n // LARGE_TILE_ROWS * LARGE_TILE_ROWS for n in counts)
    large = bank.labels[: bank.large_rows].reshape(-1, LARGE_TILE_ROWS)
    assert ((large == large[:, :1]) & (large != PADDING_LABEL)).all()
    assert (bank.labels[::TILE_ROWS] != PADDING_LABEL).all()
    real = bank.labels != PADDING_LABEL
    assert dict(zip(bank.ids[0, real], bank.labels[real], strict=True)) == dict(
        zip(np.arange(len(labels)) + 100, labels, strict=True)
    )
    assert bank.size == len(labels)
    assert bank.class_weights.tolist() == counts


@given(st.lists(st.integers(1, 3 * LARGE_TILE_ROWS), min_size=1, max_size=5), st.integers(2, LARGE_TILE_ROWS))
@settings(deadline=None)
def test_small_tiles_may_have_any_size(counts, rows):
    """None straddles a class, begins with padding or has a whole tile of it; the size is found by the labels."""
    bank = packed(np.repeat(np.arange(len(counts)), counts).tolist(), tile_rows=rows)

    rest = bank.labels[bank.large_rows :].reshape(-1, bank.small_tile_rows)
    assert ((rest == rest[:, :1]) | (rest == PADDING_LABEL)).all()
    assert (rest[:, 0] != PADDING_LABEL).all()
    assert len(bank.labels) == sum(n // LARGE_TILE_ROWS * LARGE_TILE_ROWS for n in counts) + sum(
        -(-(n % LARGE_TILE_ROWS) // rows) * rows for n in counts
    )
    assert bank.class_weights.tolist() == counts


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
def test_rows_laid_out_in_parts_are_those_laid_out_at_once(metric, monkeypatch):
    """Weights too, which are in the offsets."""
    labels = np.arange(50) % 3
    whole = packed(labels, metric, weights=1.0 + labels)
    monkeypatch.setattr(banks, "BLOCK_ROWS", 7)

    parts = packed(labels, metric, weights=1.0 + labels)

    np.testing.assert_array_equal(parts.layers["a"].rows, whole.layers["a"].rows)


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        ([20] * 1000, 20),  # of the usual size 64,000 rows in the place of 20,000
        ([200] * 100, 200),
        ([2] * 5000, 2),
        ([20, 21, 24] * 400, 24),
        ([6000] * 10, TILE_ROWS),  # hardly a row is padding
        ([20] * 40, TILE_ROWS),  # too few to matter
    ],
)
def test_small_tiles_have_the_size_that_costs_least(counts, rows):
    """One tile for each class where that is possible; the usual size where others save little."""
    assert packed(np.repeat(np.arange(len(counts)), counts).tolist()).small_tile_rows == rows


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ([0, 1, 0, 1], "every size straddles"),
        ([0, 0, 0, 1, 1, 1, 1], "no size but 1"),
        ([PADDING_LABEL, 0, 1, 1], "a tile begins with padding"),
    ],
)
def test_labels_that_are_no_tiles_have_no_size(labels, why):
    """As a damaged bundle's."""
    assert tiles_of(np.array(labels, np.int32))[1] == 0, why


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"ids": np.array([1, 1, 2])}, "ids must be unique", id="repeated id"),
        pytest.param({"ids": np.array([1, 2])}, "ids has 2 rows, labels have 3", id="lengths"),
        pytest.param({"tile_rows": 1}, "tile_rows is 1; must lie in 2 to 256", id="small tile"),
        pytest.param({"tile_rows": 257}, "tile_rows is 257; must lie in 2 to 256", id="large tile"),
        pytest.param({"num_classes": 3}, "class 2 has no rows", id="empty class"),
        pytest.param({"num_classes": 1}, r"labels must lie in \[0, 1\)", id="label out of range"),
        pytest.param({"ids": np.zeros((2, 3), int)}, r"ids have shape \[2, 3\]; .* each of 1 layers", id="layers"),
        pytest.param({"weights": np.array([1.0, 0.0, 1.0])}, "weights must be finite and positive", id="zero weight"),
        pytest.param(
            {"representations": {"a": np.array([[0, 0, 0], [0, np.nan, 0], [0, 0, 0]], np.float32)}},
            "layer 'a', example 101",
            id="NaN",
        ),
        pytest.param(
            {
                "representations": {"a": np.eye(3, dtype=np.float32), "b": np.diag([0, np.nan, 0]).astype(np.float32)},
                "ids": np.array([[5, 6, 7], [8, 9, 5]]),
                "temperatures": {"a": 0.5, "b": 0.5},
                "metrics": {"a": "cosine", "b": "cosine"},
            },
            "layer 'b', example 9 ",
            id="NaN in a layer with ids of its own",
        ),
    ],
)
def test_unfit_rows_are_refused(changes, message):
    """The error says what is wrong and where."""
    with pytest.raises(DataError, match=message):
        packed([0, 1, 1], **changes)


def test_distances_of_the_size_of_paddings_own_are_refused(monkeypatch):
    """Padding stands 1e30 away: of rows that are farther apart than that it would be the nearest."""
    z = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    monkeypatch.setattr(banks, "BLOCK_ROWS", 2)  # the rows that are too far stand in either part

    with pytest.raises(DataError, match=r"layer 'a' has rows 1e\+15 away from its median, and at most 1e\+14 are"):
        packed([0, 1, 1], representations={"a": z * np.float32(1e15)})

    assert packed([0, 1, 1], representations={"a": z * np.float32(9.9e13)}).size == 3


def test_layers_may_hold_different_examples():
    """Condensed banks: ids and weights of each layer's own; the weight of a class is the same in all."""
    z = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)

    bank = pack(
        {"a": z, "b": z},
        np.array([0, 1, 1]),
        np.array([[5, 6, 7], [8, 9, 5]]),
        num_classes=2,
        temperatures={"a": 0.5, "b": 0.5},
        metrics={"a": "squared_euclidean", "b": "squared_euclidean"},
        weights=np.array([[4.0, 1.0, 2.0], [4.0, 2.0, 1.0]]),
    )

    real = bank.labels != PADDING_LABEL
    assert bank.ids[:, real].tolist() == [[5, 6, 7], [8, 9, 5]]
    assert bank.class_weights.tolist() == [4.0, 3.0]
    difference = (bank.layers["b"].row_offsets() - bank.layers["a"].row_offsets())[real]
    np.testing.assert_allclose(difference, [0, 0.25 * np.log(2), -0.25 * np.log(2)], atol=1e-6)
