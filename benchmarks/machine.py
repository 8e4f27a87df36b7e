"""The machine and the versions that a result belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

LIBRARIES = ("softkin", "numpy", "onnxruntime-gpu", "torch", "faiss-cpu", "scikit-learn", "pytorch-ood")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe_machine(device: str) -> dict[str, Any]:
    """Processor, instruction sets, caches, versions, date; the GPU where the scorer runs on one."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    info = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # the first processor's
    flags = set(info.get("flags", "").split())
    return {
        "device": device,
        "gpu": _gpu() if device != "cpu" else None,
        "processor": info.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "instructions": {name: name in flags for name in INSTRUCTIONS},
        "caches": _caches(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine_name(machine: dict[str, Any]) -> str:
    """What files of results call a described machine: its cores, or `cuda`."""
    return f"{machine['cores']}vcpu" if machine["device"] == "cpu" else str(machine["device"])


def _caches() -> dict[str, str]:
    """Size of the second and third level, as seen from the first core."""
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
        if int(level) > 1:
            kilobytes = int(size.removesuffix("K"))
            found[f"L{level}"] = f"{kilobytes // 1024} MB" if kilobytes >= 1024 else f"{kilobytes} KB"
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU here; run with --device cpu")
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
