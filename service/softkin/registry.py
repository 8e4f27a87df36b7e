"""Detectors by name and version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from softkin.cancellation import Cancellation
from softkin.certificate import DEFAULT_CONFIDENCE
from softkin.errors import InvalidInputError, NotFoundError, SoftkinError, UnavailableError
from softkin.manifest import Manifest
from softkin.scores import Scores
from softkin.verdicts import Guarantee


class ScoringDetector(Protocol):
    """What serving needs of a detector; `softkin.detector.Detector` is one."""

    @property
    def manifest(self) -> Manifest:
        """What the detector is."""

    @property
    def digest(self) -> str:
        """sha256 of the manifest, hexadecimal."""

    @property
    def device(self) -> str:
        """Where it really runs: `cuda` or `cpu`; one for each shard of the bank, with commas between."""

    @property
    def smallest_p_value(self) -> float:
        """1 / (n + 1)."""

    @property
    def calibration_scores(self) -> NDArray[np.float64]:
        """`[n]` sorted ascending: outlier scores behind p-values."""

    def score(
        self,
        x: NDArray[np.generic],
        *,
        alpha: float | None = None,
        guarantee: Guarantee = "marginal",
        confidence: float = DEFAULT_CONFIDENCE,
        smoothing_seed: int | None = None,
        num_neighbors: int = 0,
        cancellation: Cancellation | None = None,
    ) -> Scores:
        """Score rows, from any thread, until `cancellation` is used."""

    def warm_up(self) -> None:
        """Pay for first-time allocation."""


class Registry:
    """The loaded detectors. Among versions of one name, the last one added serves by default."""

    def __init__(self) -> None:
        self._detectors: dict[str, dict[str, ScoringDetector]] = {}

    def add(self, detector: ScoringDetector) -> None:
        """Add a detector.

        Raises:
            SoftkinError: that name and version is loaded already.
        """
        name, version = detector.manifest.name, detector.manifest.version
        versions = self._detectors.get(name, {})
        if version in versions:
            raise SoftkinError(
                f"detector {name!r} version {version!r} is loaded twice; give each bundle its own version, or drop one"
            )
        # A new dictionary each time, so that readers in other threads never see one change under them.
        self._detectors = {**self._detectors, name: {**versions, version: detector}}

    def get(self, name: str = "", version: str = "") -> ScoringDetector:
        """Find a detector.

        Args:
            name: empty for the only one loaded.
            version: empty for the last one loaded under that name.

        Raises:
            InvalidInputError: no name given and there are several.
            NotFoundError: no such name or version; the message lists what is loaded.
            UnavailableError: nothing is loaded.
        """
        detectors = self._detectors
        if not detectors:
            raise UnavailableError("no detector is loaded; retry when the health service reports SERVING")
        if not name and len(detectors) > 1:
            raise InvalidInputError("detector", f"empty, but several are loaded; name one of: {self._loaded()}")
        versions = detectors.get(name) if name else next(iter(detectors.values()))
        if versions is None:
            raise NotFoundError(f"no detector named {_shown(name)}; loaded: {self._loaded()}")
        found = versions.get(version) if version else next(reversed(versions.values()))
        if found is None:
            raise NotFoundError(f"no version {_shown(version)} of that detector; loaded: {self._loaded()}")
        return found

    def __iter__(self) -> Iterator[ScoringDetector]:
        """All detectors, in order of name, then version."""
        detectors = self._detectors
        for name in sorted(detectors):
            yield from (detectors[name][version] for version in sorted(detectors[name]))

    def _loaded(self) -> str:
        return ", ".join(f"{d.manifest.name} {d.manifest.version}" for d in self)


def _shown(text: str) -> str:
    """A caller's text for a message: quoted and cut, because status messages travel in small headers."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
