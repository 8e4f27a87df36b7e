"""A running computation can be stopped by another thread."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import numpy as np
import pytest

from scorer_cases import make, packed, start
from softkin import Detector
from softkin.bank import LARGE_TILE_ROWS
from softkin.cancellation import Cancellation
from softkin.errors import CancelledError
from softkin.scorer import Scorer


def test_cancel_stops_what_runs_and_refuses_what_comes_later():
    """Once for each computation under way, and never for one that has ended."""
    cancellation, stopped = Cancellation(), []
    with cancellation.stopping_by(lambda: stopped.append("ended")):
        pass

    with (
        cancellation.stopping_by(lambda: stopped.append("a")),
        cancellation.stopping_by(lambda: stopped.append("b")),
    ):
        cancellation.cancel()

    assert stopped == ["a", "b"]
    assert cancellation.cancelled
    with pytest.raises(CancelledError), cancellation.stopping_by(lambda: stopped.append("late")):
        pass
    assert stopped == ["a", "b"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory) -> Scorer:
    """A bank of 200 chunks, so that a call of many rows takes a while."""
    z, labels, _ = make([LARGE_TILE_ROWS * 100] * 2, {"a": 32}, "cosine", 0.5, False)
    bank = packed(z, labels, {"a": 0.1}, "cosine", None)
    return start(tmp_path_factory.mktemp("b"), bank, {"a": 32}, chunk_rows=LARGE_TILE_ROWS)


def test_a_run_ends_early_without_a_result_and_the_scorer_goes_on(scorer):
    """Cancelled at the first moment that the run is under way; other runs of the same scorer are left alone."""
    x = np.random.default_rng(0).normal(size=(1024, 32)).astype(np.float32)
    expected = scorer.run(x).masses
    running = threading.Event()

    class Started(Cancellation):
        def stopping_by(self, stop):
            running.set()
            return super().stopping_by(stop)

    cancellation = Started()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            scorer.run(x, cancellation)
        except CancelledError as e:
            caught.append(e)

    thread = threading.Thread(target=call)
    thread.start()
    assert running.wait(10)
    cancellation.cancel()
    thread.join(10)

    assert not thread.is_alive()
    assert len(caught) == 1
    np.testing.assert_array_equal(scorer.run(x).masses, expected)


def test_a_run_of_one_slice_is_stopped_where_it_is(scorer):
    """At the end of a node, not of the slice: most calls have no other."""

    class OnceUnderWay(Cancellation):
        @contextmanager
        def stopping_by(self, stop):
            with super().stopping_by(stop):
                self.cancel()
                yield

    with pytest.raises(CancelledError) as caught:
        scorer.run(np.ones((1, 32), np.float32), OnceUnderWay())
    assert caught.value.__cause__ is None  # what onnxruntime says of it is no news


def test_a_call_that_is_cancelled_before_it_starts_does_not_run(tiny):
    """Sharded or not, with evidence or not."""
    cancellation = Cancellation()
    cancellation.cancel()

    for device in ("cpu", "cpu,cpu"):
        detector = Detector.load(tiny.path, device=device)
        for k in (0, 3):
            with pytest.raises(CancelledError, match="cancelled by the caller; there is no result"):
                detector.score(tiny.inliers, num_neighbors=k, cancellation=cancellation)


def test_slices_after_the_cancelled_one_are_not_computed(tiny):
    """A call of many slices ends with the slice that runs."""
    detector = Detector.load(tiny.path, device="cpu")
    slices = []

    class AfterTwo(Cancellation):
        def stopping_by(self, stop):
            slices.append(1)
            if len(slices) == 3:
                self.cancel()
            return super().stopping_by(stop)

    with pytest.raises(CancelledError):
        detector.score(np.concatenate([tiny.inliers] * 10), cancellation=AfterTwo())

    assert len(slices) == 3
