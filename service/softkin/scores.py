"""What scoring returns, in process and over the wire alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The bank rows that carry most of each row's class mass, per layer: the evidence for a verdict.

    Shapes: B rows, L layers, K neighbours, best first. A bank smaller than K gives K = bank size.
    """

    layers: tuple[str, ...]
    """Names of the L layers."""
    ids: NDArray[np.int64]
    """`[B, L, K]`: example ids of the training rows."""
    labels: NDArray[np.int32]
    """`[B, L, K]`: their class indices."""
    distances: NDArray[np.float32]
    """`[B, L, K]`: distance in the layer's metric, at least 0."""
    shares: NDArray[np.float32]
    """`[B, L, K]`: the neighbour's share of the row's whole soft-nearest-neighbour mass in that layer, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class ErrorBudget:
    """What stands behind the verdicts of one answer."""

    detector: str
    version: str
    digest: str
    """sha256 over the bundle's manifest: it names every file's own sha256."""
    device: str
    """Where it really runs: `cuda` or `cpu`; one for each shard of the bank, with commas between."""
    guarantee: str
    """What alpha promises; see `softkin.verdicts`."""
    alpha: float
    """The rate the verdicts were made at."""
    confidence: float
    """With which `false_alarm_bound` holds, over the draw of the calibration rows."""
    p_value_threshold: float
    """Rows with a p-value at or below it are flagged; 0 where none is."""
    false_alarm_bound: float | None
    """The rate that false alarms at this threshold do not exceed, for this calibration set; the worst class's for
    `class_conditional`; None for `false_discovery_rate`, which is about a batch."""
    fewest_selectable: int | None
    """For `false_discovery_rate`: how many rows of the batch must have the smallest p-value before any is flagged."""
    calibration_size: int
    smallest_p_value: float
    """1 / (calibration_size + 1), for `class_conditional` of the smallest class: no alpha below it is accepted."""
    smoothed: bool
    """Whether ties and the p-values' steps were smoothed at random, from the caller's seed."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One answer: B rows, C classes. Higher outlier score = more outlying."""

    outlier_score: NDArray[np.float64]
    """`[B]`: nonconformity at the predicted class."""
    p_value: NDArray[np.float64]
    """`[B]`: conformal p-value of `outlier_score`, in [1/(n+1), 1]; among the calibration rows of the predicted class
    where the guarantee is `class_conditional`."""
    is_outlier: NDArray[np.bool_]
    """`[B]`: `p_value <= budget.p_value_threshold`."""
    predicted_class: NDArray[np.int32]
    """`[B]`: the network's own class; without a network, the class of smallest nonconformity."""
    credibility: NDArray[np.float64]
    """`[B]`: largest class p-value (Papernot & McDaniel 2018)."""
    confidence: NDArray[np.float64]
    """`[B]`: one minus the second largest class p-value (Papernot & McDaniel 2018)."""
    class_p_values: NDArray[np.float64]
    """`[B, C]`: p-value of each class as a label for the row; among the calibration rows of that class where the
    guarantee is `class_conditional`."""
    budget: ErrorBudget
    neighbors: Neighbors | None = None
    """Present when neighbours were asked for."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Time spent per stage: `infer`, `calibrate`, and over the wire `decode`, `queue`, `encode`."""

    def __len__(self) -> int:
        return len(self.outlier_score)

    def __repr__(self) -> str:
        b, flagged = self.budget, int(self.is_outlier.sum())
        return f"Scores({len(self)} rows, {flagged} flagged at alpha={b.alpha:g} ({b.guarantee}), {b.detector})"
