"""Rows of data with their labels and ids, and the proof that two sets of rows share none. Needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError


@dataclass(frozen=True)
class Rows:
    """n rows of a data source."""

    x: NDArray[np.generic]
    """`[n, ...]` raw inputs in the source's own dtype."""
    y: NDArray[np.int64]
    """`[n]` class indices."""
    ids: NDArray[np.int64]
    """`[n]` example ids, unique in the whole source."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: NDArray[np.integer]) -> Rows:
        """The rows at `indices`, in that order."""
        return Rows(self.x[indices], self.y[indices], self.ids[indices])


def row_digests(x: NDArray[np.generic]) -> list[bytes]:
    """sha256 of every row's bytes: equal exactly where rows are equal."""
    flat = np.ascontiguousarray(x).reshape(len(x), -1)
    return [hashlib.sha256(row.tobytes()).digest() for row in flat]


def fingerprint(x: NDArray[np.generic]) -> str:
    """Hexadecimal sha256 over a set of rows, whatever their order: names a split in a manifest."""
    return hashlib.sha256(b"".join(sorted(row_digests(x)))).hexdigest()


def refuse_overlap(a: Rows, b: Rows, a_name: str, b_name: str) -> None:
    """Refuse two sets of rows that share an id or a row of equal content.

    A calibration row that the network or the bank has seen scores lower than a fresh inlier, so the false-alarm rate
    would no longer hold.

    Raises:
        DataError: says how many rows are shared and names the first.
    """
    shared_ids = np.intersect1d(a.ids, b.ids)
    if len(shared_ids):
        raise DataError(
            f"{a_name} and {b_name} share {len(shared_ids)} examples, the first with id {int(shared_ids[0])}; they "
            "must be disjoint, or the false-alarm rate does not hold"
        )
    seen = set(row_digests(a.x))
    equal = [i for i, d in enumerate(row_digests(b.x)) if d in seen]
    if equal:
        raise DataError(
            f"{b_name} has {len(equal)} rows whose content also stands in {a_name}, the first is example "
            f"{int(b.ids[equal[0]])}; remove the duplicates, or the false-alarm rate does not hold"
        )
