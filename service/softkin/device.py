"""What this process may compute on: threads and devices, as the operating system tells it."""

from __future__ import annotations

import ctypes
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from softkin.errors import InvalidInputError

CGROUP = Path("/sys/fs/cgroup")
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
"""What OpenBLAS reads."""


def available_threads() -> int:
    """Cores this process may use: the least of its affinity mask and its cgroup's CPU quota, at least 1.

    onnxruntime's own default counts the host's cores and so oversubscribes every container.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota())))


def limit_blas_threads() -> None:
    """Let NumPy, which must not have been imported yet, compute with `available_threads`, or what the environment says.

    OpenBLAS starts a thread for each core of the host. Where the cgroup's quota is less they take each other's time:
    two threads on the quota of one core need four times as long for a matrix product as one.
    """
    if not any(name in os.environ for name in THREAD_VARIABLES):
        os.environ[THREAD_VARIABLES[0]] = str(available_threads())


def _quota() -> float:
    """Cores by the cgroup's CPU quota, of version 2 or 1; infinite where there is none."""
    try:
        if (version_2 := CGROUP / "cpu.max").exists():
            quota, period = version_2.read_text().split()
        else:
            quota, period = ((CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError):  # "max", or the root group, which has no such file
        return math.inf
    return cores if cores > 0 else math.inf


def cuda_driver_present() -> bool:
    """True when the NVIDIA driver's library loads: without it, trying CUDA only prints errors."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Target:
    """One device that a session is asked to run on."""

    kind: Literal["cuda", "cpu"]
    index: int = 0
    """Which GPU."""
    required: bool = False
    """Refuse to run anywhere else."""


def parse_device(device: str) -> tuple[Target, ...]:
    """What `--device` means: one target, or one for each shard of the bank.

    Args:
        device: `cpu`; `cuda` or `cuda:N`, which refuse to run anywhere else; `auto`: CUDA where it really works, else
            the CPU; or several of `cpu`, `cuda:N` with commas between: each then holds its share of the bank.

    Raises:
        InvalidInputError: none of these.
    """
    if device == "auto":
        return (Target("cuda") if cuda_driver_present() else Target("cpu"),)
    targets = []
    for name in str(device).split(","):  # a value of another type is refused below
        found = re.fullmatch(r"(cpu)|cuda(?::(\d{1,3}))?", name)
        if found is None:
            allowed = "auto, cpu, cuda, cuda:N, or several of cpu and cuda:N separated by commas"
            raise InvalidInputError("device", f"got {device!r}; must be {allowed}")
        targets.append(Target("cpu") if found[1] else Target("cuda", int(found[2] or 0), required=True))
    return tuple(targets)
