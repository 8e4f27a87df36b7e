"""A bank split over several devices: each holds a share of the rows, and their class masses merge exactly."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.bank import LARGE_TILE_ROWS, Bank
from softkin.cancellation import Cancellation
from softkin.device import parse_device
from softkin.errors import InvalidInputError
from softkin.nonconformity import Outputs
from softkin.scorer import Nearest, Scorer

_T = TypeVar("_T")


class ShardedScorer:
    """One `Scorer` for each device, over its share of the bank; with a single device, that scorer alone.

    Every device runs the network itself, so that no representation travels between devices.

    Args:
        model: as for `Scorer`.
        bank: as for `Scorer`.
        bank_file: as for `Scorer`.
        device: see `parse_device`.
        threads: as for `Scorer`, for each shard.

    Raises:
        InvalidInputError: no such device, or more devices than the bank has tiles.
        BundleError, DeviceError: as for `Scorer`.
    """

    def __init__(
        self,
        model: Path,
        bank: Bank,
        bank_file: Path,
        *,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        targets = parse_device(device)
        self._shards = [
            Scorer(model, bank, bank_file, device=target, threads=threads, rows=rows)
            for target, rows in zip(targets, shard_rows(bank, len(targets)), strict=True)
        ]
        self._pool = ThreadPoolExecutor(len(targets), thread_name_prefix="shard") if len(targets) > 1 else None
        self.device = ",".join(shard.device for shard in self._shards)
        first = self._shards[0]
        self.has_logits, self.has_boundary, self.input_name = first.has_logits, first.has_boundary, first.input_name

    def run(self, x: NDArray[np.generic], cancellation: Cancellation | None = None) -> Outputs:
        """As `Scorer.run`."""
        return merge_outputs(self._each(lambda shard: shard.run(x, cancellation)))

    def run_with_nearest(
        self, x: NDArray[np.generic], k: int, cancellation: Cancellation | None = None
    ) -> tuple[Outputs, Nearest]:
        """As `Scorer.run_with_nearest`."""
        found = self._each(lambda shard: shard.run_with_nearest(x, min(k, shard.num_rows), cancellation))
        return merge_outputs([outputs for outputs, _ in found]), merge_nearest([nearest for _, nearest in found], k)

    def _each(self, call: Callable[[Scorer], _T]) -> list[_T]:
        if self._pool is None:
            return [call(self._shards[0])]
        # Every shard is waited for, also after one has failed: no run goes on behind the caller's back.
        running = [self._pool.submit(call, shard) for shard in self._shards]
        wait(running)
        error = next(filter(None, (future.exception() for future in running)), None)
        if error is None:
            return [future.result() for future in running]
        try:
            raise error
        finally:
            del error, running  # a cycle: the error holds this frame, and with it the shards


def shard_rows(bank: Bank, count: int) -> list[slice]:
    """Tiled rows of each of `count` shards: about equally many, cut between tiles.

    Raises:
        InvalidInputError: more shards than tiles.
    """
    n, large = len(bank.labels), bank.large_rows
    starts = np.concatenate([np.arange(0, large, LARGE_TILE_ROWS), np.arange(large, n, bank.small_tile_rows)])
    if count > len(starts):
        raise InvalidInputError("device", f"names {count} shards, but this bank has only {len(starts)} tiles to share")
    wanted = np.arange(1, count) * n / count
    # The i-th cut leaves at least i tiles before it. Behind it there are enough: the small ones come last.
    at = np.maximum(np.searchsorted(starts, wanted), np.arange(1, count))
    return [slice(a, b) for a, b in pairwise([0, *starts[at].tolist(), n])]


def merge_outputs(shards: list[Outputs]) -> Outputs:
    """Outputs of the whole bank from those of its shards; what the network alone yields is every shard's own."""
    if len(shards) == 1:
        return shards[0]
    merged = mass.merge_masses(np.stack([s.masses for s in shards]))
    return replace(shards[0], masses=merged.astype(np.float32))


def merge_nearest(shards: list[Nearest], k: int) -> Nearest:
    """The k rows of largest mass among those of the shards, best first."""
    contributions = np.concatenate([s.contributions for s in shards], axis=2)
    rows = np.concatenate([s.rows for s in shards], axis=2)
    best = np.argsort(-contributions, axis=2, kind="stable")[:, :, :k]
    return Nearest(
        contributions=np.take_along_axis(contributions, best, axis=2), rows=np.take_along_axis(rows, best, axis=2)
    )
