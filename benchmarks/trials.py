"""Repeated trials of what softkin promises, on real scores: behind docs/guarantees.md and tests/statistical.

The scores lie in results/fashion_mnist_scores.npz (see scores.py): 16,000 inliers and 20,000 outliers that the network,
the bank and each other have never met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin.conformal import p_values
from softkin.drift import DriftReport, DriftWatch
from softkin.verdicts import check_rule

Floats = NDArray[np.float64]
PValues = Callable[[Floats, Floats, Floats], Floats]
"""From scores `[B]`, a sorted calibration `[n]` and uniform numbers `[B]` to p-values `[B]`."""

SCORES = Path(__file__).parent / "results" / "fashion_mnist_scores.npz"
TIED_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class RealScores:
    """Scores of one kind."""

    inliers: Floats
    """`[16000]` calibration and test rows together."""
    predicted_classes: NDArray[np.int32]
    """`[16000]` of the inliers."""
    outliers: dict[str, Floats]


def real_scores(*, tied: bool = False) -> RealScores:
    """The bundle's own scores, or with `tied` counts as DkNN's, of which the least strange 60 % are made equal."""
    key = "dknn_count" if tied else "outlier_score"
    with np.load(SCORES, allow_pickle=False) as file:
        arrays: dict[str, NDArray[Any]] = {k: file[k] for k in file if k != "about"}
    inliers = np.concatenate([arrays[f"{part}.{key}"] for part in ("calibration", "test")]).astype(np.float64)
    least = np.quantile(inliers, TIED_SHARE, method="lower") if tied else -np.inf
    classes = np.concatenate([arrays[f"{part}.predicted_class"] for part in ("calibration", "test")])
    names = [k.removesuffix(f".{key}") for k in arrays if k.endswith(f".{key}")]
    return RealScores(
        inliers=np.maximum(inliers, least),
        predicted_classes=classes.astype(np.int32),
        outliers={
            name: np.maximum(arrays[f"{name}.{key}"].astype(np.float64), least)
            for name in names
            if name not in ("calibration", "test")
        },
    )


def deterministic(scores: Floats, calibration: Floats, u: Floats) -> Floats:
    """Ties count against the row; `u` is not used."""
    return p_values(scores, calibration)


def split_p_values(
    inliers: Floats, n: int, splits: int, rng: np.random.Generator, methods: Sequence[PValues]
) -> list[Floats]:
    """Per method `[splits]` p-values: each split draws n calibration rows and one more row, without replacement.

    Within a split the rows are exchangeable and splits are independent, so the number of p-values at most alpha is
    binomial, with chance alpha exactly where the p-value is exact.
    """
    found = [np.empty(splits) for _ in methods]
    for i in range(splits):
        rows = inliers[rng.choice(len(inliers), n + 1, replace=False)]
        calibration, u = np.sort(rows[1:]), 1.0 - rng.random(1)
        for p, method in zip(found, methods, strict=True):
            p[i] = method(rows[:1], calibration, u)[0]
    return found


def realised_rates(inliers: Floats, n: int, k: int, draws: int, rng: np.random.Generator) -> Floats:
    """`[draws]` share of all other inliers with one of the k smallest p-values, for each draw of n calibration rows."""
    rates = np.empty(draws)
    for i in range(draws):
        order = rng.permutation(len(inliers))
        p = p_values(inliers[order[n:]], np.sort(inliers[order[:n]]))
        rates[i] = (p <= k / (n + 1)).mean()
    return rates


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Batches in which rows were selected."""

    false_discovery: Floats
    """`[batches]` share of inliers among the selected rows; 0 where none was."""
    found: Floats
    """`[batches]` share of the batch's outliers that were selected."""


def select_in_batches(
    inliers: Floats,
    outliers: Floats,
    *,
    n: int,
    rows: int,
    share: float,
    rate: float,
    batches: int,
    rng: np.random.Generator,
) -> Selected:
    """Select in batches of `rows`, a `share` of which are outliers, each with a calibration set of its own."""
    false_discovery, found = np.zeros(batches), np.zeros(batches)
    rule = check_rule("false_discovery_rate", alpha=rate, calibration_size=n, class_sizes=(n,))
    strange = round(share * rows)
    for i in range(batches):
        drawn = inliers[rng.choice(len(inliers), n + rows - strange, replace=False)]
        batch = np.concatenate([rng.choice(outliers, strange, replace=False), drawn[n:]])
        flagged = rule.decide(p_values(batch, np.sort(drawn[:n]))).is_outlier
        false_discovery[i] = flagged[strange:].sum() / max(1, flagged.sum())
        found[i] = flagged[:strange].mean() if strange else 0.0
    return Selected(false_discovery=false_discovery, found=found)


def watch(calibration: Floats, stream: Floats, rng: np.random.Generator, *, level: float = 0.01) -> DriftReport:
    """What a drift watch reports at the end of a stream."""
    drift = DriftWatch(np.sort(calibration), level=level, rng=rng)
    drift.observe(stream)
    return drift.report()


def mixed_stream(inliers: Floats, outliers: Floats, share: float, rng: np.random.Generator) -> Floats:
    """The inliers in random order, with a random outlier in the place of a row with chance `share`."""
    stream = rng.permutation(inliers)
    strange = rng.random(len(stream)) < share
    stream[strange] = rng.choice(outliers, int(strange.sum()))
    return stream
