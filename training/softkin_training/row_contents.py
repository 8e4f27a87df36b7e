"""Which rows have the same content: what a detector was made of must not calibrate it, and no row counts twice.

Rows are compared by their sha256, sorted as numbers: sets of text would take most of a build's time and memory where
there are millions of rows. Needs no torch.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError
from softkin_training.rows import Rows, sha256_of_each

DIGEST_BYTES = hashlib.sha256().digest_size
HASHED_TOGETHER = 1 << 16
"""Digests that are spelled at a time."""
BANK_IN_ORDER = "bank_in_order"
"""Key of a bundle's fingerprints: `fingerprint_in_order` of the rows of its bank by their ids."""

_Value = TypeVar("_Value", bound=np.generic)


def row_digests(x: Rows | NDArray[np.generic]) -> list[str]:
    """The sha256 of each row of `x`, `[n, ...]`: equal for equal dtype, row shape and values."""
    return [digest.tobytes().hex() for digest in _digests(x)]


def fingerprint(x: Rows | NDArray[np.generic]) -> str:
    """One sha256 for the set of rows, `[n, ...]`: the same in any order and with repeated rows."""
    digests = _digests(x)
    order, is_first = _sorted(digests)
    firsts = order[is_first]
    found = hashlib.sha256()
    for start in range(0, len(firsts), HASHED_TOGETHER):
        text = digests[firsts[start : start + HASHED_TOGETHER]].tobytes().hex("\n", DIGEST_BYTES)
        found.update(f"\n{text}".encode() if start else text.encode())
    return found.hexdigest()


def fingerprint_in_order(x: Rows | NDArray[np.generic]) -> str:
    """One sha256 for rows, `[n, ...]`, one after the other."""
    return hashlib.sha256(_digests(x).tobytes()).hexdigest()


def digests64(x: Rows | NDArray[np.generic]) -> NDArray[np.uint64]:
    """The first 64 bits of each row's `row_digests`, sorted, each once: what a bundle remembers of the rows it used."""
    return distinct(_first64(x))


def distinct(values: NDArray[_Value]) -> NDArray[_Value]:
    """`[n]` values sorted, each once, in a twentieth of the time that `np.unique` of NumPy 2.3 takes for digests."""
    ordered = np.sort(values)
    return np.concatenate([ordered[:1], ordered[1:][ordered[1:] != ordered[:-1]]])


def among(values: NDArray[_Value], others: NDArray[_Value]) -> NDArray[np.bool_]:
    """`[n]`: whether each of `[n]` values is one of `others`; as quick beside `np.isin`."""
    if not len(others):
        return np.zeros(len(values), np.bool_)
    ordered = np.sort(others)
    return np.asarray(ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values)


def originals(x: Rows | NDArray[np.generic], before: Rows | NDArray[np.generic] | None = None) -> NDArray[np.int64]:
    """`[n]` for each row of `x`, `[n, ...]`, which is the first of the same content: itself, unless it is a copy.

    Args:
        x: the rows.
        before: `[m, ...]` others, which come before them: a row of their content gets a number below 0.
    """
    digests, ahead = _digests(x), 0
    if before is not None:
        ahead = len(before)
        digests = np.concatenate([_digests(before), digests])
    order, is_first = _sorted(digests)
    found = np.empty(len(digests), np.int64)
    found[order] = order[is_first][np.cumsum(is_first) - 1]
    return found[ahead:] - ahead


def refuse_used(rows: Rows, used: NDArray[np.uint64], where: str, name: str = "calibration") -> None:
    """Refuse calibration rows whose content has been used elsewhere.

    Args:
        rows: rows to calibrate with.
        used: `digests64` of the rows used.
        where: those stand in, for the message.
        name: of `rows`, for the message.

    Raises:
        DataError: says how many rows are concerned and names the first.
    """
    found = np.flatnonzero(among(_first64(rows), used))
    if len(found):
        raise DataError(
            f"{name} has {len(found)} rows whose content also stands in {where}, the first is example "
            f"{int(rows.ids[found[0]])}; remove them, or the false-alarm rate does not hold"
        )


def refuse_repeated(rows: Rows, name: str = "calibration") -> None:
    """Refuse repeated calibration rows: copies are no independent draws, so n would count more rows than there are.

    Raises:
        DataError: says how many rows are copies and names the first.
    """
    first = originals(rows)
    copies = np.flatnonzero(first != np.arange(len(rows)))
    if len(copies):
        i = copies[0]
        raise DataError(
            f"{name} has {len(copies)} rows whose content came before, the first is example {int(rows.ids[i])}, "
            f"a copy of example {int(rows.ids[first[i]])}; remove the copies, or the false-alarm rate does not hold"
        )


def refuse_overlap(a: Rows, b: Rows, a_name: str, b_name: str) -> None:
    """Refuse two sets of rows that share an id or a row of equal content.

    A calibration row that the network or the bank has seen scores lower than a fresh inlier, so the false-alarm rate
    would no longer hold.

    Raises:
        DataError: says how many rows are shared and names the first.
    """
    shared_ids = a.ids[among(a.ids, b.ids)]
    if len(shared_ids):
        raise DataError(
            f"{a_name} and {b_name} share {len(shared_ids)} examples, the first with id {int(shared_ids.min())}; they "
            "must be disjoint, or the false-alarm rate does not hold"
        )
    equal = np.flatnonzero(originals(b, before=a) < 0)
    if len(equal):
        raise DataError(
            f"{b_name} has {len(equal)} rows whose content also stands in {a_name}, the first is example "
            f"{int(b.ids[equal[0]])}; remove the duplicates, or the false-alarm rate does not hold"
        )


def _digests(x: Rows | NDArray[np.generic]) -> NDArray[np.uint8]:
    return x.digests if isinstance(x, Rows) else sha256_of_each([x])


def _first64(x: Rows | NDArray[np.generic]) -> NDArray[np.uint64]:
    return _words(_digests(x)[:, :8])[:, 0]


def _words(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """`[n, words]` digests as numbers, which sort as the bytes do."""
    return np.ascontiguousarray(digests).view(">u8").astype(np.uint64)


def _sorted(digests: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions `[n]` in the order of the digests, equal ones as they came; and which of them begin another content.

    Sorted by their first 64 bits, and by all of them where these are equal: a fifth of the time, where few rows are.
    """
    first = _words(digests[:, :8])[:, 0]
    order = np.argsort(first)
    first = first[order]
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = first[1:] != first[:-1]
    alike = ~is_first
    alike[:-1] |= alike[1:]
    at = np.flatnonzero(alike)
    positions = order[at]
    words = _words(digests[positions])
    by = np.lexsort((positions, *words.T[::-1]))
    order[at] = positions[by]
    is_first[at[1:]] = (words[by[1:]] != words[by[:-1]]).any(axis=1)
    return order, is_first
