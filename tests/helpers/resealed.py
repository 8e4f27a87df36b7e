"""Copies of a bundle that are whole, but for what a test changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from softkin import bundle


def copy(source: Path, target: Path, **fields: Any) -> Path:
    """A copy, in place of what stood there, with other values of some fields of its manifest."""
    staging = target.with_name(f".{target.name}.new")
    shutil.copytree(source, staging)
    change_manifest(staging, lambda manifest: manifest.update(fields))
    if target.exists():
        shutil.rmtree(target)
    return staging.rename(target)


def change_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and nothing else."""
    file = path / bundle.MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def change_array(path: Path, name: str, array: str, change: Callable[[NDArray[np.generic]], None]) -> None:
    """Change one array of a file in place, and let the manifest vouch for it."""
    change_arrays(path, name, lambda tensors: change(tensors[array]))


def change_arrays(path: Path, name: str, change: Callable[[dict[str, NDArray[np.generic]]], object]) -> None:
    """Change the arrays of a file, and let the manifest vouch for it."""
    file = path / name
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    content = file.read_bytes()

    def seal(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    change_manifest(path, seal)
