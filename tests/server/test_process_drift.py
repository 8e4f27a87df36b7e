"""The drift watch outlives its process: killed, stopped, or replaced by another version."""

from __future__ import annotations

import signal
import threading

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file

from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb

STRANGE = pb.ScoreRequest(inputs=array_to_tensor(np.full((20, 2, 3), 1000, np.float32)))


def saved_rows(folder):
    """Rows in the state file; -1 while there is none. The file is replaced whole, so any moment is right to look."""
    files = list(folder.glob("*.safetensors"))
    return int(load_file(files[0])["counters"][0]) if files else -1


def wait_until_saved(folder, rows):
    """Until the state file has so many rows."""
    for _ in range(4000):
        if saved_rows(folder) >= rows:
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"{saved_rows(folder)} rows were saved, not {rows}")


def drift(process):
    """What the process's watch has seen."""
    with process.client() as client:
        return client.drift().report


def test_a_killed_server_goes_on_from_what_it_saved(serve, tmp_path):
    """SIGKILL: rows, largest evidence and alarm are there again, and new rows are added to them."""
    arguments = ("--drift-state", str(tmp_path), "--drift-save-seconds", "0.05")
    first = serve(*arguments)
    for _ in range(5):
        first.stub.Score(STRANGE, timeout=30)
    before = drift(first)
    wait_until_saved(tmp_path, 100)

    first.popen.kill()
    first.popen.wait()
    second = serve(*arguments)
    after = drift(second)
    second.stub.Score(STRANGE, timeout=30)

    assert (before.rows, before.alarm) == (100, True)
    assert after.rows == 100
    assert after.max_log10_martingale == before.max_log10_martingale
    assert (after.alarm_row, after.cusum) == (before.alarm_row, before.cusum)
    assert after.histogram.tolist() == before.histogram.tolist()
    assert drift(second).rows == 120


@pytest.mark.parametrize("kills", [3])
def test_a_server_that_is_killed_while_it_scores_and_saves_always_starts_again(serve, tmp_path, kills):
    """At no moment does the folder hold a state that cannot be gone on from; no saved row is lost."""
    arguments = ("--drift-state", str(tmp_path), "--drift-save-seconds", "0.001")
    known = 0
    for _ in range(kills):
        process = serve(*arguments)
        assert drift(process).rows >= known

        def score(stub=process.stub):
            try:
                while True:
                    stub.Score(STRANGE, timeout=30)
            except grpc.RpcError:  # killed
                return

        threads = [threading.Thread(target=score) for _ in range(4)]
        for t in threads:
            t.start()
        wait_until_saved(tmp_path, known + 2000)
        known = saved_rows(tmp_path)
        process.popen.kill()
        process.popen.wait()
        for t in threads:
            t.join()

    assert drift(serve(*arguments)).rows >= known >= kills * 2000


def test_a_server_that_is_stopped_saves_every_row(serve, tmp_path):
    """SIGTERM: nothing was written before, everything is there afterwards."""
    arguments = ("--drift-state", str(tmp_path), "--drift-save-seconds", "3600")
    first = serve(*arguments)
    for _ in range(7):
        first.stub.Score(STRANGE, timeout=30)
    before, unsaved = drift(first), saved_rows(tmp_path)

    first.popen.send_signal(signal.SIGTERM)
    status, _ = first.finish()
    after = drift(serve(*arguments))

    assert (status, unsaved) == (0, -1)
    assert vars(after) | {"histogram": None} == vars(before) | {"histogram": None}
    assert after.histogram.tolist() == before.histogram.tolist()
    assert after.rows == 140
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ".safetensors"]


def test_a_new_version_starts_a_watch_of_its_own(serve, tmp_path):
    """Other calibration rows, another watch; the old version's is there when it comes back."""
    rows = {}
    for version, scored in (("1", 2), ("2", 1), ("1", 1)):
        process = serve("--drift-state", str(tmp_path), "--version", version)
        rows.setdefault(version, []).append(drift(process).rows)
        for _ in range(scored):
            process.stub.Score(STRANGE, timeout=30)
        process.popen.send_signal(signal.SIGTERM)
        assert process.finish()[0] == 0

    assert rows == {"1": [0, 40], "2": [0]}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_without_a_folder_a_restart_begins_anew(serve):
    """State is kept only where the operator says."""
    first = serve()
    first.stub.Score(STRANGE, timeout=30)
    first.popen.send_signal(signal.SIGTERM)
    first.finish()

    assert drift(serve()).rows == 0
