"""How the bank is cut into matrix products: what bounds memory, and where a run can be stopped."""

from __future__ import annotations

from dataclasses import dataclass

from softkin.bank import LARGE_TILE_ROWS, Bank
from softkin.device import available_threads

# Multiples of the large tile, but of no large power of two: rows of logits a power of two apart share cache sets.
CHUNK_ROWS = 33 * LARGE_TILE_ROWS
INT8_CHUNK_ROWS = 25 * LARGE_TILE_ROWS
ONE_THREAD_CHUNK_ROWS = 17 * LARGE_TILE_ROWS
LARGE_CHUNK_ROWS = 65 * LARGE_TILE_ROWS
CUDA_CHUNK_ROWS = 1025 * LARGE_TILE_ROWS
LARGE_BANK_ROWS = 1 << 17
SLICE_ROWS = 256
"""Rows per session run, at most: larger arrays go through in slices, so that memory does not grow with the request."""
SLICE_NUMBERS = 1 << 24
"""Numbers of the input per session run, at most: a network's hidden layers hold many times as many, so that 256 large
images at once would need more memory than there is. A single row may have more."""
MOST_LOGITS = CHUNK_ROWS * SLICE_ROWS
"""Most logits of a chunk on the CPU: the more rows it has, the fewer queries it takes at a time."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive tiled rows that make one matrix product."""

    start: int
    stop: int
    tile_rows: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut_into_chunks(bank: Bank, chunk_rows: int, rows: slice = slice(None)) -> list[Chunk]:
    """Cut tiled rows into chunks of at most `chunk_rows`, large tiles and small ones apart.

    Args:
        bank: the bank.
        chunk_rows: a multiple of `LARGE_TILE_ROWS`.
        rows: which tiled rows; starts and ends between tiles.
    """
    first, last, _ = rows.indices(len(bank.labels))
    border = min(max(bank.large_rows, first), last)
    chunks = []
    for begin, stop, tile in ((first, border, LARGE_TILE_ROWS), (border, last, bank.small_tile_rows)):
        step = chunk_rows // tile * tile
        chunks += [Chunk(start, min(start + step, stop), tile) for start in range(begin, stop, step)]
    return chunks


def chunk_rows_for(device: str, bank: Bank, threads: int | None = None, rows: slice = slice(None)) -> int:
    """Rows per chunk: what measured fastest on CPUs; a GPU wants larger products.

    A single thread starts a node sooner than several do, and has only one core's cache for the logits; int8 makes one
    more pass over the logits. So both get smaller chunks. Large banks get larger ones: there the time to start nodes is
    all that is left to save.

    Args:
        device: `cuda` or `cpu`.
        bank: the bank.
        threads: of the session; all this process may use when None.
        rows: which tiled rows of the bank the session has.
    """
    if device == "cuda":
        return CUDA_CHUNK_ROWS
    if (threads or available_threads()) == 1:
        return ONE_THREAD_CHUNK_ROWS
    if len(range(*rows.indices(len(bank.labels)))) > LARGE_BANK_ROWS:
        return LARGE_CHUNK_ROWS
    return INT8_CHUNK_ROWS if bank.precision == "int8" else CHUNK_ROWS


def slice_rows_for(device: str, chunk_rows: int) -> int:
    """Queries at a time, so that logits take no more memory than `MOST_LOGITS` on the CPU."""
    return SLICE_ROWS if device == "cuda" else max(1, min(SLICE_ROWS, MOST_LOGITS // chunk_rows))


def rows_together(numbers_per_row: int, slice_rows: int = SLICE_ROWS) -> int:
    """How many rows of an input go through a network at a time: at least one, and at most `slice_rows`."""
    return max(1, min(slice_rows, SLICE_NUMBERS // max(1, numbers_per_row)))
