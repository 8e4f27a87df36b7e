"""Bundles of stand-ins: directories that verify like any bundle, whose scores tell which one answered."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin import bundle
from softkin.manifest import FileEntry
from softkin.scores import RowScores
from standin import StandIn, manifest


class Shifted(StandIn):
    """A stand-in whose outlier scores are the row's sum plus its shift, a small whole number."""

    def __init__(self, name: str = "standin", version: str = "1", shift: int = 0, **options: Any) -> None:
        super().__init__(name, version, **options)
        self.shift = shift

    def score_rows(self, x: NDArray[np.generic], **options: Any) -> RowScores:
        """Score by arithmetic."""
        moved = np.array(x, np.float32)
        moved[:, 0, 0] += self.shift
        return super().score_rows(moved, **options)


def write(path: Path, version: str = "1", *, shift: int = 0, name: str = "standin") -> str:
    """Write a bundle, over whatever was there; returns its digest."""
    staging = path.with_name(f".{path.name}.new")
    staging.mkdir()
    files = {}
    for file in bundle.DATA_FILES:
        content = str(shift).encode() if file == bundle.MODEL else file.encode()
        (staging / file).write_bytes(content)
        files[file] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    text = dataclasses.replace(manifest(name, version), files=files).to_json()
    (staging / bundle.MANIFEST).write_text(text)
    if path.exists():
        shutil.rmtree(path)
    staging.rename(path)
    return hashlib.sha256(text.encode()).hexdigest()


class Loading:
    """Loads stand-ins of bundles, as `Detector.load` would.

    Attributes:
        loaded: paths, in order.
        entered: released once for every load, its files read.
        gate: when given, every load waits until it is set, its files read.
        detector_gate: handed to the detectors.
        failures: raised by the next loads, one each; None lets that one pass.
    """

    def __init__(self) -> None:
        self.loaded: list[Path] = []
        self.entered = threading.Semaphore(0)
        self.gate: threading.Event | None = None
        self.failures: list[Exception | None] = []
        self.detector_gate: threading.Event | None = None

    def __call__(self, path: Path, *, device: str, threads: int | None) -> Shifted:
        """The stand-in of a bundle."""
        self.loaded.append(path)
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        found, digest = bundle.verify_files(path)
        shift = int((path / bundle.MODEL).read_text())
        self.entered.release()
        if self.gate is not None:
            assert self.gate.wait(60), "nobody opened the gate for a minute"
        detector = Shifted(found.name, found.version, shift, gate=self.detector_gate)
        detector.manifest, detector.digest = found, digest
        return detector
