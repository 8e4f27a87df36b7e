"""What this process may compute on: threads and GPU driver, as the operating system tells it."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path


def available_threads() -> int:
    """Cores this process may use: the least of its affinity mask and its cgroup's CPU quota, at least 1.

    onnxruntime's own default counts the host's cores and so oversubscribes every container.
    """
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2 here, or the root group: no quota
        pass
    return max(1, math.ceil(cores))


def cuda_driver_present() -> bool:
    """True when the NVIDIA driver's library loads: without it, trying CUDA only prints errors."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
