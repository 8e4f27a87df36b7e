"""The threads that rank rows and save drift states live on, whatever they meet."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from softkin import drift, drift_watches
from softkin.drift_watches import RANKED_TOGETHER, DriftWatches
from standin import StandIn


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("x"), MemoryError()])
def test_after_a_save_that_failed_comes_the_next(tmp_path, monkeypatch, caplog, error):
    """In the same thread: the log says why, and a killed server has lost a few seconds and not a year."""
    detector, watches, failures = StandIn(), DriftWatches(folder=tmp_path, save_seconds=0.01), [error]
    save, failed, saved = drift_watches.save, threading.Event(), threading.Event()
    watches.add(detector)

    def fail_first(tensors):
        if failures:
            failed.set()
            raise failures.pop()
        if failed.is_set() and tensors["counters"][0] == 3:
            saved.set()
        return save(tensors)

    monkeypatch.setattr(drift_watches, "save", fail_first)
    with caplog.at_level(logging.ERROR, "softkin.server"), watches.watching():
        assert failed.wait(20)
        watches.observe(detector.score(np.ones((3, 2, 3), np.float32)))
        assert saved.wait(20)

    [record] = caplog.records
    assert record.getMessage().startswith("event=drift_state_not_saved file=")
    assert "error=" in record.getMessage()
    assert not record.getMessage().endswith("error=")
    [file] = tmp_path.glob("*.safetensors")
    assert load_file(file)["counters"][0] == 3


def test_states_that_could_not_be_written_are_counted_until_they_are(tmp_path, monkeypatch, caplog):
    """One of two; and one that is watched no longer is nobody's loss. The log says once when all are written again."""
    one, other = StandIn(version="1"), StandIn(version="2")
    watches = DriftWatches(folder=tmp_path)
    watches.add(one)
    watches.add(other)
    seen, written_whole, full = [], drift_watches.written_whole, {"-1-", "-2-"}

    def no_room(file):
        if any(part in file.name for part in full):
            raise OSError(28, "No space left on device")
        return written_whole(file)

    monkeypatch.setattr(drift_watches, "written_whole", no_room)
    caplog.set_level(logging.INFO, "softkin.server")
    for still_full in ({"-1-", "-2-"}, {"-2-"}, {"-2-"}, set(), set()):
        full.clear()
        full.update(still_full)
        caplog.clear()
        watches.save()
        seen.append((watches.unsaved, [message.split()[0] for message in caplog.messages]))
    full.add("-2-")
    watches.save()
    watches.remove(other.digest)
    watches.save()

    one_failed = ["event=drift_state_not_saved"]
    assert seen == [(2, one_failed * 2), (1, one_failed), (1, one_failed), (0, ["event=drift_state_saved"]), (0, [])]
    assert watches.unsaved == 0


def test_without_a_folder_an_unload_complains_of_no_save(caplog):
    """There is none to fail: an error in the log of every such server would hide those that matter."""
    detector, watches = StandIn(), DriftWatches()
    watches.add(detector)
    assert watches.unsaved == 0

    watches.save()
    watches.remove(detector.digest)

    assert caplog.records == []
    assert watches.unsaved == 0


def test_where_no_thread_ranks_rows_whoever_brings_them_does(monkeypatch):
    """Before it watches, say: nobody would ever rank them, and more and more would wait."""
    detector, watches, ranked = StandIn(), DriftWatches(), []
    watch = watches.add(detector)
    monkeypatch.setattr(drift.DriftWatch, "catch_up", lambda ready: ranked.append(ready))

    watches.observe(detector.score(np.ones((RANKED_TOGETHER, 2, 3), np.float32)))

    assert ranked == [watch]


def test_a_fault_while_rows_are_ranked_ends_no_thread(monkeypatch, caplog):
    """Out of memory, say: later rows are ranked there too, so that the device does not wait; the log tells of it."""
    detector, watches, ranking, bets = StandIn(), DriftWatches(), [], drift.bets
    watches.add(detector)

    def fail_first(p):
        ranking.append(threading.current_thread().name)
        if len(ranking) == 1:
            raise MemoryError
        return bets(p)

    monkeypatch.setattr(drift, "bets", fail_first)
    answer = detector.score(np.ones((RANKED_TOGETHER, 2, 3), np.float32))
    with watches.watching():
        watches.observe(answer)
        while not caplog.messages:
            time.sleep(0.001)
        watches.observe(answer)

    assert set(ranking) == {"drift"}
    assert caplog.messages == ["event=drift_rows_lost error=MemoryError()"]
    assert watches.report(detector, 0.05).rows == RANKED_TOGETHER
