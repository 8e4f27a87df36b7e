"""Rows of data with their labels and ids, and the proof that two sets of rows share none. Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError

BLOCK_BYTES = 1 << 20
"""About so many bytes are read at once of rows that need not fit into memory."""

_R = TypeVar("_R", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """n rows of a data source, in memory; see `stored_rows.py` for those on disk.

    Whoever may get more rows than fit into memory leaves `x` alone, and takes `blocks` or `read`.
    """

    x: NDArray[np.generic]
    """`[n, ...]` raw inputs in the source's own dtype; they must not change once `digests` are known."""
    y: NDArray[np.int64]
    """`[n]` class indices."""
    ids: NDArray[np.int64]
    """`[n]` example ids, unique in the whole source."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_inputs(self) -> int:
        """Raw inputs there are; as many as labels, unless rows and labels were put together wrongly."""
        return len(self.x)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Data type of the raw inputs."""
        return self.x.dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one raw input."""
        return self.x.shape[1:]

    def read(self, which: slice | NDArray[np.integer]) -> NDArray[np.generic]:
        """`[m, ...]` raw inputs of the rows at `which`, in that order."""
        return self.x[which]

    def blocks(self) -> Iterator[NDArray[np.generic]]:
        """The raw inputs in order, about a megabyte at a time: where blocks end follows from dtype and row shape."""
        rows = block_rows(self.dtype, self.row_shape)
        return (self.read(slice(start, start + rows)) for start in range(0, len(self), rows))

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        """`[n, 32]` the sha256 of each raw input, of its dtype, row shape and values.

        All raw inputs are read for it, so they are once: what is taken of these rows afterwards knows its own.
        """
        return _sha256(self.blocks())

    def take(self, indices: NDArray[np.integer]) -> Rows:
        """The rows at `indices`, in that order."""
        return self._share_digests(Rows(self.x[indices], self.y[indices], self.ids[indices]), indices)

    def labelled(self, y: NDArray[np.int64]) -> Rows:
        """The same rows with other labels, `[n]`."""
        return Rows(self.x, y, self.ids)

    def _share_digests(self, taken: _R, indices: NDArray[np.integer]) -> _R:
        if "digests" in vars(self):
            vars(taken)["digests"] = self.digests[indices]
        return taken


def block_rows(dtype: np.dtype[np.generic], row_shape: tuple[int, ...]) -> int:
    """How many rows make about `BLOCK_BYTES`."""
    return max(1, BLOCK_BYTES // max(1, dtype.itemsize * math.prod(row_shape)))


def row_digests(x: Rows | NDArray[np.generic]) -> list[str]:
    """The sha256 of each row of `x`, `[n, ...]`: equal for equal dtype, row shape and values."""
    return [digest.tobytes().hex() for digest in _digests(x)]


def fingerprint(x: Rows | NDArray[np.generic]) -> str:
    """One sha256 for the set of rows, `[n, ...]`: the same in any order and with repeated rows."""
    return hashlib.sha256("\n".join(sorted(set(row_digests(x)))).encode()).hexdigest()


def digests64(x: Rows | NDArray[np.generic]) -> NDArray[np.uint64]:
    """The first 64 bits of each row's `row_digests`, sorted, each once: what a bundle remembers of the rows it used."""
    return np.unique(_first64(x))


def _digests(x: Rows | NDArray[np.generic]) -> NDArray[np.uint8]:
    return x.digests if isinstance(x, Rows) else _sha256([x])


def _sha256(blocks: Iterable[NDArray[np.generic]]) -> NDArray[np.uint8]:
    digests = bytearray()
    for block in blocks:
        header = hashlib.sha256(f"{block.dtype.name}{block.shape[1:]}".encode())
        little_endian = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<"))
        for row in little_endian.reshape(len(block), math.prod(block.shape[1:])):
            h = header.copy()
            h.update(row.tobytes())
            digests += h.digest()
    return np.frombuffer(digests, np.uint8).reshape(-1, hashlib.sha256().digest_size)


def _first64(x: Rows | NDArray[np.generic]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(_digests(x)[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def check_labels(rows: Rows, num_classes: int, name: str) -> None:
    """Refuse labels that are no class indices.

    Raises:
        DataError: not one label per row, or one outside `[0, num_classes)`; calls the rows `name`.
    """
    if rows.num_inputs != len(rows.y):
        raise DataError(f"{name}: there are {rows.num_inputs} rows and {len(rows.y)} labels; they must be equally many")
    if len(rows) and not (rows.y.min() >= 0 and rows.y.max() < num_classes):
        raise DataError(f"{name}: labels must lie in [0, {num_classes}); got [{rows.y.min()}, {rows.y.max()}]")


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
    found = np.flatnonzero(np.isin(_first64(rows), used))
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
    first: dict[str, int] = {}
    originals = [first.setdefault(digest, i) for i, digest in enumerate(row_digests(rows))]
    copies = [i for i, original in enumerate(originals) if i != original]
    if copies:
        i = copies[0]
        raise DataError(
            f"{name} has {len(copies)} rows whose content came before, the first is example {int(rows.ids[i])}, "
            f"a copy of example {int(rows.ids[originals[i]])}; remove the copies, or the false-alarm rate does not hold"
        )


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
    seen = set(row_digests(a))
    equal = [i for i, d in enumerate(row_digests(b)) if d in seen]
    if equal:
        raise DataError(
            f"{b_name} has {len(equal)} rows whose content also stands in {a_name}, the first is example "
            f"{int(b.ids[equal[0]])}; remove the duplicates, or the false-alarm rate does not hold"
        )
