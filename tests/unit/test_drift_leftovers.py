"""What a server that was killed had begun of a drift state goes with the next save, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

from softkin.drift_watches import DriftWatches
from standin import StandIn

KILLED = """
import os, signal, sys
from pathlib import Path
from softkin.unfinished_files import written_whole
with written_whole(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half a state")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_server_leaves_its_last_state_and_no_other_file_for_long(tmp_path):
    """The state of before stays readable; the beginning goes when the next server saves."""
    detector = StandIn()
    watches = DriftWatches(folder=tmp_path)
    watches.add(detector)
    with watches.watching():
        watches.observe(detector.score(np.ones((7, 2, 3), np.float32)))
    (state,) = tmp_path.glob("*.safetensors")
    subprocess.run([sys.executable, "-c", KILLED, state], check=False)
    beginnings = [name for name in os.listdir(tmp_path) if name.startswith(f".{state.name}.")]
    assert len(beginnings) == 1

    again = DriftWatches(folder=tmp_path)
    again.add(detector)
    with again.watching():
        again.observe(detector.score(np.ones((3, 2, 3), np.float32)))

    assert sorted(os.listdir(tmp_path)) == [".lock", state.name]
    assert load_file(state)["counters"][0] == 10
