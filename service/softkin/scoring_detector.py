"""What the server knows of a detector: all of serving is written against this, and tests have stand-ins of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from softkin.cancellation import Cancellation
from softkin.manifest import Manifest
from softkin.scores import RowScores, Scores
from softkin.verdicts import Guarantee, Rule


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

    def check(self, x: NDArray[np.generic]) -> NDArray[np.generic]:
        """The rows as the device takes them; refuses what does not fit."""

    def rule(self, *, alpha: float | None, guarantee: Guarantee, confidence: float, smoothed: bool) -> Rule:
        """How verdicts are made; refuses what the calibration rows cannot honour. The same object when asked again."""

    def score_rows(
        self, x: NDArray[np.generic], *, num_neighbors: int = 0, cancellation: Cancellation | None = None
    ) -> RowScores:
        """Score checked rows, of one caller or several, from any thread, until `cancellation` is used."""

    def judge(
        self, found: RowScores, rule: Rule, x: NDArray[np.generic], *, smoothing_seed: int | None = None
    ) -> Scores:
        """P-values and verdicts of scored rows `x`."""

    def warm_up(self, rows: int) -> None:
        """Run a batch of so many rows, to pay for first-time allocation."""
