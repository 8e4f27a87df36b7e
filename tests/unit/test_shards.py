"""A bank split over several devices."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softkin import Detector, InvalidInputError
from softkin.bank import LARGE_TILE_ROWS, PADDING_LABEL, TILE_ROWS, pack
from softkin.cancellation import Cancellation
from softkin.device import parse_device
from softkin.errors import CancelledError, DeviceError
from softkin.nonconformity import Outputs
from softkin.scorer import Nearest
from softkin.shards import ShardedScorer, merge_nearest, shard_rows


def bank_of(counts):
    """A bank with that many rows per class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    z = np.ones((len(labels), 1), np.float32)
    return pack(
        {"a": z},
        labels,
        np.arange(len(labels)),
        num_classes=len(counts),
        temperatures={"a": 1.0},
        metrics={"a": "squared_euclidean"},
    )


@given(st.lists(st.integers(1, 900), min_size=1, max_size=6), st.integers(1, 12))
@settings(deadline=None, max_examples=200)
def test_shards_cover_every_row_once_and_cut_between_tiles(counts, count):
    """None larger than its share by a whole tile, some of a single tile; more shards than tiles are refused."""
    bank = bank_of(counts)
    n, large = len(bank.labels), bank.large_rows
    tiles = large // LARGE_TILE_ROWS + (n - large) // TILE_ROWS
    if count > tiles:
        with pytest.raises(InvalidInputError, match=f"names {count} shards, but this bank has only {tiles} tiles"):
            shard_rows(bank, count)
        return

    found = shard_rows(bank, count)

    assert len(found) == count
    assert np.concatenate([np.arange(n)[rows] for rows in found]).tolist() == list(range(n))
    assert max(rows.stop - rows.start for rows in found) < n / count + LARGE_TILE_ROWS
    for rows in found:
        size = LARGE_TILE_ROWS if rows.start < large else TILE_ROWS
        assert (rows.start - (0 if rows.start < large else large)) % size == 0
        assert (bank.labels[rows] != PADDING_LABEL).any()


@pytest.mark.parametrize("device", ["cpu,cpu", "cpu,cpu,cpu,cpu"])
def test_a_sharded_detector_scores_like_a_whole_one(tiny, device):
    """Scores, verdicts and evidence; shards that lack a class included."""
    whole, sharded = (Detector.load(tiny.path, device=d) for d in ("cpu", device))
    x = np.concatenate([tiny.inliers[:30], tiny.outliers[:30]])

    expected, found = (d.score(x, num_neighbors=200) for d in (whole, sharded))

    assert sharded.outputs(x).masses.dtype == whole.outputs(x).masses.dtype == np.float32
    assert [d.has_logits for d in (whole, sharded)] == [True, True]
    assert sharded.device == device
    assert found.budget.device == device
    np.testing.assert_allclose(found.outlier_score, expected.outlier_score, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.is_outlier, expected.is_outlier)
    np.testing.assert_array_equal(found.neighbors.ids[:, :, :3], expected.neighbors.ids[:, :, :3])
    np.testing.assert_allclose(found.neighbors.shares, expected.neighbors.shares, atol=1e-5)


def test_a_request_that_is_stopped_does_not_keep_a_sharded_detector(tiny):
    """What is unloaded gives its memory back at once, without the garbage collector."""
    detector, cancellation = Detector.load(tiny.path, device="cpu,cpu"), Cancellation()
    held = weakref.ref(detector._scorer)
    gc.disable()
    try:
        cancellation.cancel()
        with pytest.raises(CancelledError):
            detector.score_rows(tiny.inliers[:5], cancellation=cancellation)
        del detector

        assert held() is None
    finally:
        gc.enable()


class StandIn:
    """A scorer that takes its time, or fails at once."""

    has_logits, has_boundary, input_name, num_rows = False, False, "x", 3

    def __init__(self, target, threads):
        self.target, self.threads = target, threads
        self.device = "cuda" if target.index == 1 else "cpu"  # the others came down to the CPU
        self.fails = self.finished = False
        self.thread = None
        self.outputs = Outputs(masses=np.zeros((1, 1, 1), np.float32), logits=None)

    def run(self, barrier, cancellation):
        """Nothing, and not before the other shards run."""
        self.thread = threading.current_thread()
        barrier.wait(10)
        if self.fails:
            raise DeviceError("broken")
        time.sleep(0.05)
        self.finished = True
        return self.outputs


def stood_in(monkeypatch, device, threads=None):
    """A sharded scorer of stand-ins, and these."""
    made = []

    def scorer(*_, device, threads, rows):
        made.append(StandIn(device, threads))
        return made[-1]

    monkeypatch.setattr("softkin.shards.Scorer", scorer)
    return ShardedScorer(None, bank_of([LARGE_TILE_ROWS] * 3), None, device=device, threads=threads), made


def test_every_shard_has_the_device_that_is_named_for_it(monkeypatch):
    """And all the threads; where they run is told as they tell it."""
    sharded, shards = stood_in(monkeypatch, "cpu,cuda:1,cuda", threads=3)

    assert [(s.target.kind, s.target.index) for s in shards] == [("cpu", 0), ("cuda", 1), ("cuda", 0)]
    assert [s.threads for s in shards] == [3, 3, 3]
    assert sharded.device == "cpu,cuda,cpu"


def test_a_single_device_runs_in_the_thread_that_asks(monkeypatch):
    """It needs no thread of its own, nor a copy; threads of several are named, for whoever looks at the process."""
    single, [alone] = stood_in(monkeypatch, "cpu")
    double, both = stood_in(monkeypatch, "cpu,cpu")

    found = single.run(threading.Barrier(1))
    double.run(threading.Barrier(2))

    assert found is alone.outputs
    assert alone.thread is threading.current_thread()
    assert sorted(s.thread.name for s in both) == ["shard_0", "shard_1"]


@pytest.mark.parametrize("failing", [[], [0], [1], [0, 1]], ids=str)
def test_shards_run_at_once_and_each_is_waited_for(monkeypatch, failing):
    """Also when another has failed: nothing runs on behind the caller's back, and no failure keeps the shards."""
    sharded, shards = stood_in(monkeypatch, "cpu,cpu")
    for i in failing:
        shards[i].fails = True
    gc.disable()
    try:
        with pytest.raises(DeviceError, match="broken") if failing else contextlib.nullcontext():
            sharded.run(threading.Barrier(2))
        assert [s.finished for s in shards] == [i not in failing for i in range(2)]
        held = weakref.ref(sharded)
        del sharded

        assert held() is None
    finally:
        gc.enable()


def test_the_nearest_of_all_shards_are_told_best_first_and_equal_ones_in_the_order_of_the_bank():
    """As a whole bank tells them; rows that come several times contribute alike."""
    rng = np.random.default_rng(0)
    shards = []
    for s in range(3):
        contributions = -np.sort(rng.integers(0, 4, (2, 2, 40)), axis=2).astype(np.float32)
        shards.append(Nearest(contributions=contributions, rows=100 * s + np.broadcast_to(np.arange(40), (2, 2, 40))))

    found = merge_nearest(shards, 50)

    for b, layer in np.ndindex(2, 2):
        every = [(-c, r) for s in shards for c, r in zip(s.contributions[b, layer], s.rows[b, layer], strict=True)]
        best = sorted(every)[:50]
        assert [(-c, r) for c, r in zip(found.contributions[b, layer], found.rows[b, layer], strict=True)] == best


def test_more_shards_than_tiles_are_refused(tiny):
    """The bank of 300 rows has 6 tiles."""
    with pytest.raises(InvalidInputError, match="names 7 shards, but this bank has only 6 tiles to share"):
        Detector.load(tiny.path, device=",".join(["cpu"] * 7))


@pytest.mark.parametrize("device", ["", "gpu", "cpu,", "auto,cpu", "cuda:", "cuda:-1", "cuda:0 ,cpu", "CPU", 5])
def test_unknown_devices_are_refused(device):
    """With what is allowed."""
    with pytest.raises(InvalidInputError, match="must be auto, cpu, cuda, cuda:N, or several"):
        parse_device(device)


def test_devices_are_parsed():
    """Which GPU, and whether another device would do."""
    (zero,), (one, cpu) = parse_device("cuda"), parse_device("cuda:1,cpu")

    assert (zero.kind, zero.index, zero.required) == ("cuda", 0, True)
    assert (one.kind, one.index, one.required) == ("cuda", 1, True)
    assert (cpu.kind, cpu.required) == ("cpu", False)
