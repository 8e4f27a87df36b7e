"""The disk fills up while the server keeps its drift state there."""

from __future__ import annotations

import resource
import time

from safetensors.numpy import load_file

WAIT_SECONDS = 30


def until(condition):
    """Wait for what the server does by its own clock."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_full_disk_stops_the_saving_and_nothing_else(serve, tmp_path, answers_well):
    """The last whole state stays, no part of a new one; log and metric tell; saving goes on when there is room."""
    process = serve("--drift-state", str(tmp_path / "state"), "--drift-save-seconds", "0.05")
    answers_well(process)
    until(lambda: list((tmp_path / "state").glob("*.safetensors")))
    (file,) = (tmp_path / "state").glob("*.safetensors")
    _, hard = resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE)

    # No file may grow beyond a hundred bytes: the same error at the same place as a disk without room.
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (100, hard))
    line = process.read_until("event=drift_state_not_saved")
    answers_well(process)
    until(lambda: process.metric("softkin_unsaved_drift_states") == 1)
    kept = load_file(file)
    left = sorted(p.name for p in (tmp_path / "state").iterdir())
    resource.prlimit(process.popen.pid, resource.RLIMIT_FSIZE, (hard, hard))
    before = file.stat().st_mtime_ns
    until(lambda: file.stat().st_mtime_ns > before)
    until(lambda: process.metric("softkin_unsaved_drift_states") == 0)

    assert str(file) in line
    assert kept
    assert left == [".lock", file.name]
    answers_well(process)
