"""Which rows have the same content, within a set and between two. Needs no torch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from softkin.errors import DataError
from softkin_training import row_contents
from softkin_training.row_contents import (
    among,
    digests64,
    distinct,
    fingerprint,
    originals,
    refuse_overlap,
    refuse_repeated,
    row_digests,
)
from softkin_training.rows import Rows, members_of_each
from softkin_training.split import first_of_each


def rows(x, first_id=0):
    """Rows of class 0 with consecutive ids."""
    return Rows(x, np.zeros(len(x), np.int64), first_id + np.arange(len(x)))


@pytest.fixture
def repeated():
    """500 rows, of which hardly half are different."""
    return np.random.default_rng(0).integers(0, 17, (500, 2)).astype(np.uint8)


@pytest.mark.parametrize("together", [1, 7, 1 << 16])
def test_a_fingerprint_is_the_sha256_of_the_sorted_digests(repeated, together, monkeypatch):
    """Which bundles and checkpoints of before hold: the same in any order, and however often a row is there."""
    monkeypatch.setattr(row_contents, "HASHED_TOGETHER", together)
    expected = hashlib.sha256("\n".join(sorted(set(row_digests(repeated)))).encode()).hexdigest()

    assert fingerprint(repeated) == fingerprint(repeated[::-1]) == fingerprint(rows(repeated)) == expected
    assert fingerprint(repeated[:40]) != expected
    assert fingerprint(repeated[:0]) == hashlib.sha256().hexdigest()


def test_the_original_of_a_row_is_the_first_of_its_content(repeated):
    """Against a dictionary; with rows that come before, those are meant, and numbers below 0 say so."""
    first: dict[bytes, int] = {}
    expected = [first.setdefault(row.tobytes(), i) for i, row in enumerate(repeated)]

    assert originals(repeated).tolist() == originals(rows(repeated)).tolist() == expected
    assert originals(repeated[200:], before=repeated[:200]).tolist() == [i - 200 for i in expected[200:]]
    assert originals(repeated[:0], before=repeated).tolist() == []


def test_digests_that_begin_alike_are_of_different_rows():
    """All 256 bits count: two rows in ten billion billion share 64."""
    digests = np.zeros((7, 32), np.uint8)
    digests[:, -1] = [2, 1, 2, 0, 0, 1, 2]
    digests[5:, 0] = 9
    x = rows(np.arange(7))
    vars(x)["digests"] = digests

    assert originals(x).tolist() == [0, 1, 0, 3, 3, 5, 6]
    assert digests64(x).tolist() == [0, 9 << 56]
    assert (
        fingerprint(x) == hashlib.sha256("\n".join(sorted({d.tobytes().hex() for d in digests})).encode()).hexdigest()
    )


def test_rows_that_came_before_or_are_taken_are_dropped(repeated):
    """The first of each stays, in its order; where all stay, nothing is copied."""
    kept = first_of_each(rows(repeated))

    assert kept.ids.tolist() == sorted({r.tobytes(): i for i, r in reversed(list(enumerate(repeated)))}.values())
    assert first_of_each(kept) is kept
    others = {r.tobytes() for r in repeated[:100]}
    expected = [i for i, r in zip(kept.ids, kept.x, strict=True) if r.tobytes() not in others]
    assert first_of_each(kept, rows(repeated[:100])).ids.tolist() == expected


def test_sorted_once_and_found_among(repeated):
    """Against NumPy's own; of nothing too."""
    values = repeated[:, 0].astype(np.uint64) << np.uint64(57)

    np.testing.assert_array_equal(distinct(values), np.unique(values))
    np.testing.assert_array_equal(among(values, values[:9]), np.isin(values, values[:9]))
    assert among(values, values[:0]).tolist() == [False] * 500
    assert distinct(values[:0]).tolist() == among(values[:0], values).tolist() == []


def test_members_of_each_class_are_those_with_its_label():
    """Ascending; classes in order, those that do not occur left out."""
    y = np.array([3, 1, 3, 7, 1, 3])

    assert [m.tolist() for m in members_of_each(y)] == [[1, 4], [0, 2, 5], [3]]
    assert [m.tolist() for m in members_of_each(y[:1])] == [[0]]


def test_sets_that_share_no_row_and_no_id_pass():
    """And those that do are told which."""
    x = np.arange(12, dtype=np.uint8).reshape(4, 3)
    refuse_overlap(rows(x), rows(x + 100, 4), "a", "b")

    with pytest.raises(DataError, match=r"a and b share 2 examples, the first with id 2"):
        refuse_overlap(rows(x), rows(x + 100, 2), "a", "b")
    with pytest.raises(DataError, match=r"b has 2 rows whose content also stands in a, the first is example 11"):
        refuse_overlap(rows(x), rows(np.concatenate([x[:1] + 50, x[2:]]), 10), "a", "b")


def test_copies_are_told_with_their_original():
    """The first copy, and the first row of its content."""
    x = np.array([[1], [2], [2], [1], [2]], np.uint8)

    with pytest.raises(
        DataError, match=r"3 rows whose content came before, the first is example 12, a copy of example 11"
    ):
        refuse_repeated(rows(x, 10))
