"""The thread that saves drift states lives on, whatever a save meets."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file

from softkin import drift_watches
from softkin.drift_watches import DriftWatches
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


def test_without_a_folder_an_unload_complains_of_no_save(caplog):
    """There is none to fail: an error in the log of every such server would hide those that matter."""
    detector, watches = StandIn(), DriftWatches()
    watches.add(detector)

    watches.save()
    watches.remove(detector.digest)

    assert caplog.records == []
