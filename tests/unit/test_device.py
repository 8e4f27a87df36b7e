"""How many cores there are for this process, and what keeps to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from softkin import device
from softkin.device import THREAD_VARIABLES, available_threads, limit_blas_threads

V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
# What an entry point has imported, and said to OpenBLAS, when its command begins.
STARTED = """
import os, sys
from {package}.__main__ import main

class Begun:
    def find_spec(self, name, path=None, target=None):
        if name == "{package}.cli":
            print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"))

sys.meta_path.insert(0, Begun())
main()
"""


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n", V1[0]: "100000\n", V1[1]: "100000\n"}, 8),
        ({V1[0]: "150000\n", V1[1]: "50000\n"}, 3),
        ({V1[0]: "-1\n", V1[1]: "100000\n"}, 8),
        ({V1[0]: "100000\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_cores_are_those_of_the_affinity_cut_by_the_quota(tmp_path, monkeypatch, files, expected):
    """Of either version of cgroups, rounded up; where there is no quota, or none that can be read, all."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    assert available_threads() == expected


@pytest.mark.parametrize("name", [None, *THREAD_VARIABLES])
def test_numpy_keeps_to_these_unless_the_environment_says_otherwise(monkeypatch, name):
    """Whichever of OpenBLAS's variables it is."""
    for variable in THREAD_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    if name:
        monkeypatch.setenv(name, "17")
    monkeypatch.setattr(device, "available_threads", lambda: 5)

    limit_blas_threads()

    found = {variable: os.environ[variable] for variable in THREAD_VARIABLES if variable in os.environ}
    assert found == ({name: "17"} if name else {"OPENBLAS_NUM_THREADS": "5"})


@pytest.mark.parametrize("package", ["softkin", "softkin_training"])
def test_the_commands_say_so_before_numpy_starts_its_threads(package):
    """Afterwards it would not be heard."""
    environment = {key: value for key, value in os.environ.items() if key not in THREAD_VARIABLES}
    command = [sys.executable, "-c", STARTED.format(package=package), "--version"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    assert result.stdout.splitlines()[0] == f"False {available_threads()}", result.stderr
