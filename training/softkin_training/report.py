"""What an evaluation found: the content of report.json, from which tables and pictures are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from softkin.certificate import Certificate
from softkin_training.calibration_metrics import Bin, ClassifierCalibration
from softkin_training.detection_metrics import Rate, Uniformity

SCHEMA_VERSION = 1
"""Version of report.json's layout; grows when a key changes its meaning or is removed."""

Metric = Literal["auroc", "aupr_out", "aupr_in", "fpr95", "fpr95_id"]
HIGHER_IS_BETTER: dict[Metric, bool] = {
    "auroc": True,
    "aupr_out": True,
    "aupr_in": True,
    "fpr95": False,
    "fpr95_id": False,
}


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One score against one outlier set."""

    rows: int
    """Outliers in the set."""
    auroc: float
    aupr_out: float
    aupr_in: float
    fpr95: float
    fpr95_id: float
    caught: Rate | None
    """Share of outliers with p-value <= alpha; None where the score was not calibrated."""
    roc: list[float]
    """Share of outliers caught at each false-positive rate of `Report.roc_rates`."""


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """One score against every outlier set."""

    title: str
    source: str
    """Where the score comes from."""
    calibration_size: int | None
    """Rows behind its p-values; None where it was not calibrated."""
    false_alarms: Rate | None
    """Share of inliers with p-value <= alpha; None where the score was not calibrated."""
    uniformity: Uniformity | None
    """Test of the inliers' p-values; None where the score was not calibrated."""
    outliers: dict[str, Detection]

    @property
    def mean_auroc(self) -> float:
        """Mean over outlier sets."""
        return self.mean("auroc", list(self.outliers))

    @property
    def mean_caught(self) -> float | None:
        """Mean over outlier sets; None where the score was not calibrated."""
        return self.caught(list(self.outliers))

    def mean(self, metric: Metric, names: Sequence[str]) -> float:
        """Mean of a metric over the named outlier sets."""
        return float(np.mean([getattr(self.outliers[n], metric) for n in names]))

    def caught(self, names: Sequence[str]) -> float | None:
        """Mean share caught over the named outlier sets; None where the score was not calibrated."""
        rates = [c.value for n in names if (c := self.outliers[n].caught)]
        return float(np.mean(rates)) if rates else None


@dataclass(frozen=True, kw_only=True)
class PValues:
    """The p-values that the bundle itself gives."""

    chance_of_false_alarms: float
    """Chance of at least so many false alarms if the inliers are exchangeable with the calibration rows."""
    inlier_histogram: list[int]
    """Inliers in equally wide parts of [0, 1]."""
    alphas: list[float]
    inliers_flagged: list[float]
    """Share of inliers flagged at each of `alphas`."""
    outliers_flagged: dict[str, list[float]]
    """Share of each outlier set flagged at each of `alphas`."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Outlier scores of the bundle."""

    edges: list[float]
    """The first and last bin hold what lies beyond them too."""
    inliers: list[int]
    outliers: dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Inliers made worse in one way and to one degree."""

    kind: str
    severity: int
    """0 for the images as they are."""
    level: float
    """In the unit of `Corruptions.units`."""
    flagged: Rate
    accuracy: float | None
    """None without labels."""
    accuracy_of_accepted: float | None
    """Accuracy on the rows that were not flagged; None without labels or where all were flagged."""


@dataclass(frozen=True, kw_only=True)
class Corruptions:
    """How the share flagged moves when inliers get worse."""

    skipped: str | None
    """Why nothing was corrupted; None where it was."""
    rows: int
    units: dict[str, str]
    levels: list[Corrupted]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `evaluate` found."""

    schema_version: int = SCHEMA_VERSION
    created: str
    detector: str
    version: str
    digest: str
    alpha: float
    certificate: Certificate
    """What the false-alarm rate of this calibration set does not exceed at alpha."""
    calibration_size: int
    inlier_rows: int
    accuracy: float | None
    has_logits: bool
    """Whether a network tells the classes; False for bare vectors, which are of the class they are least strange in."""
    near: tuple[str, ...]
    """Outlier sets close to the known classes; the others are far."""
    scores: dict[str, ScoreReport]
    """By short name; the bundle's own score is `softkin`."""
    roc_rates: list[float]
    p_values: PValues
    histogram: Histogram
    classifier: ClassifierCalibration | None
    """None without labels or logits."""
    credibility: tuple[Bin, ...]
    """Accuracy by credibility; empty without labels."""
    corruptions: Corruptions
    notes: tuple[str, ...]
    """What was left out, and what to be careful about."""

    @property
    def outlier_sets(self) -> tuple[str, ...]:
        """Names of the outlier sets."""
        return tuple(next(iter(self.scores.values())).outliers)

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """`all` outlier sets; where some are marked near and others are not, also `near` and `far`."""
        near = tuple(n for n in self.outlier_sets if n in self.near)
        far = tuple(n for n in self.outlier_sets if n not in self.near)
        return {"all": self.outlier_sets, **({"near": near, "far": far} if near and far else {})}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, means included."""
        raw = dataclasses.asdict(self)
        for name, report in self.scores.items():
            raw["scores"][name] |= {
                "mean_auroc": report.mean_auroc,
                "mean_caught": report.mean_caught,
                "means": {
                    group: {**{m: report.mean(m, names) for m in HIGHER_IS_BETTER}, "caught": report.caught(names)}
                    for group, names in self.groups.items()
                },
            }
        return raw
