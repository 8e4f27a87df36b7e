"""Rows of data with their labels and ids. Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from softkin.errors import DataError

BLOCK_BYTES = 1 << 20
"""About so many bytes are read at once of rows that need not fit into memory."""

ROWS_TOGETHER = 1 << 13
"""Rows of a bank that are worked on at a time."""

Naming: TypeAlias = Callable[[NDArray[np.int64]], Sequence[str]]
"""Gives `[n]` names for `[n]` example ids of training rows: a path, a key; empty for a row that has none."""


class RowSource(Protocol):
    """Raw inputs `[N, ...]`, in memory or on disk, as far as NumPy's arrays have it."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Data type of the numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, ...)`."""

    def __getitem__(self, which: Any) -> NDArray[np.generic]:
        """`[m, ...]` the rows at `which`, a slice or positions, in that order."""


@dataclass(frozen=True)
class Rows:
    """n rows of a source; those that are taken of them share it, and nothing is copied before it is read.

    Whoever may get more rows than fit into memory leaves `x` alone, and takes `blocks` or `read`.
    """

    source: RowSource
    """Raw inputs in a dtype of its own, which must not change once `digests` are known."""
    y: NDArray[np.int64]
    """`[n]` class indices."""
    ids: NDArray[np.int64]
    """`[n]` example ids, unique in the whole source."""
    positions: NDArray[np.integer] | None = None
    """`[n]` where each row stands in the source; None for all of it in its order."""

    @classmethod
    def of(cls, x: NDArray[np.generic]) -> Rows:
        """All of an array `[n, ...]`, in its order, before labels are known: each has class 0."""
        return cls(x, np.zeros(len(x), np.int64), np.arange(len(x)))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> NDArray[np.generic]:
        """`[n, ...]` all raw inputs, in memory."""
        return self.read(slice(None))

    @property
    def num_inputs(self) -> int:
        """Raw inputs there are; as many as labels, unless rows and labels were put together wrongly."""
        return self.source.shape[0] if self.positions is None else len(self.positions)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Data type of the raw inputs."""
        return self.source.dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one raw input."""
        return self.source.shape[1:]

    def read(self, which: slice | NDArray[np.integer]) -> NDArray[np.generic]:
        """`[m, ...]` raw inputs of the rows at `which`, in that order."""
        return self.source[which if self.positions is None else self.positions[which]]

    def blocks(self) -> Iterator[NDArray[np.generic]]:
        """The raw inputs in order, about a megabyte at a time: where blocks end follows from dtype and row shape."""
        rows = block_rows(self.dtype, self.row_shape)
        return (self.read(slice(start, start + rows)) for start in range(0, len(self), rows))

    @cached_property
    def digests(self) -> NDArray[np.uint8]:
        """`[n, 32]` the sha256 of each raw input, of its dtype, row shape and values.

        All raw inputs are read for it, so they are once: what is taken of these rows afterwards knows its own.
        """
        return sha256_of_each(self.blocks())

    def take(self, indices: NDArray[np.integer]) -> Rows:
        """The rows at `indices`, in that order; nothing is read."""
        positions = indices if self.positions is None else self.positions[indices]
        return self._with_digests(Rows(self.source, self.y[indices], self.ids[indices], positions), indices)

    def labelled(self, y: NDArray[np.int64]) -> Rows:
        """The same rows with other labels, `[n]`."""
        return self._with_digests(Rows(self.source, y, self.ids, self.positions), slice(None))

    def _with_digests(self, rows: Rows, which: slice | NDArray[np.integer]) -> Rows:
        """Rows that are those at `which` of these; they know their digests if these do."""
        if "digests" in vars(self):
            vars(rows)["digests"] = self.digests[which]
        return rows


def block_rows(dtype: np.dtype[np.generic], row_shape: tuple[int, ...]) -> int:
    """How many rows make about `BLOCK_BYTES`."""
    return max(1, BLOCK_BYTES // max(1, dtype.itemsize * math.prod(row_shape)))


def sha256_of_each(blocks: Iterable[NDArray[np.generic]]) -> NDArray[np.uint8]:
    """`[n, 32]` the sha256 of each row of blocks `[m, ...]`: of its dtype, row shape and values."""
    digests = bytearray()
    for block in blocks:
        header = hashlib.sha256(f"{block.dtype.name}{block.shape[1:]}".encode())
        little_endian = np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<"))
        for row in little_endian.reshape(len(block), math.prod(block.shape[1:])):
            h = header.copy()
            h.update(row.tobytes())
            digests += h.digest()
    return np.frombuffer(digests, np.uint8).reshape(-1, hashlib.sha256().digest_size)


def parts_of(num_rows: int) -> Iterator[slice]:
    """The rows of a bank in order, `ROWS_TOGETHER` at a time: what is made of each part need not be there of all."""
    return (slice(start, start + ROWS_TOGETHER) for start in range(0, num_rows, ROWS_TOGETHER))


def members_of_each(y: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Ascending positions of the rows of each class that occurs in labels `[n]`, n >= 1, from the lowest class on."""
    order = np.argsort(y, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(y[order])) + 1)


def check_labels(rows: Rows, num_classes: int, name: str) -> None:
    """Refuse labels that are no class indices.

    Raises:
        DataError: not one label per row, or one outside `[0, num_classes)`; calls the rows `name`.
    """
    if rows.num_inputs != len(rows.y):
        raise DataError(f"{name}: there are {rows.num_inputs} rows and {len(rows.y)} labels; they must be equally many")
    if len(rows) and not (rows.y.min() >= 0 and rows.y.max() < num_classes):
        raise DataError(f"{name}: labels must lie in [0, {num_classes}); got [{rows.y.min()}, {rows.y.max()}]")
