"""What scoring returns, in process and over the wire alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = slice | NDArray[np.intp]
"""Which rows to take: a slice gives views, numbers give copies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """The bank rows that carry most of each row's class mass, per layer: the evidence for a verdict.

    Shapes: B rows, L layers, K neighbours, best first. A bank smaller than K gives K = bank size. A row on which a
    layer overflows has no neighbours there: ids and labels are -1, distances +inf, shares 0.
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
    names: Mapping[int, str] = field(default_factory=dict)
    """What those of `ids` are called whose name the bundle has; over the wire, where the server tells."""

    def take(self, rows: Rows) -> Neighbors:
        """The neighbours of some rows."""
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in _NEIGHBOR_ARRAYS}
        there = np.unique(arrays["ids"]).tolist() if self.names else []
        return replace(self, **arrays, names={i: self.names[i] for i in there if i in self.names})

    @classmethod
    def concatenate(cls, parts: Sequence[Neighbors]) -> Neighbors:
        """Join those of consecutive rows."""
        arrays: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _NEIGHBOR_ARRAYS}
        return replace(parts[0], **arrays, names={i: name for p in parts for i, name in p.names.items()})


_NEIGHBOR_ARRAYS = ("ids", "labels", "distances", "shares")


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """In which respects each row is strange: what its outlier score is made of, on one scale.

    The respects are the parts of a detector with nonconformity `joint`, and the layers of any other. Each is given as
    its surprise: minus the natural log of the p-value of the part's, or layer's, own score, against the detector's
    reference rows for a part, against its calibration rows for a layer. Half of all inliers are below 0.7, one in
    twenty is above 3. A part whose name ends in `_tail` is 2.5 times what the surprise exceeds 2.5 by, or 0.
    The outlier score of `joint` is the length of the vector of surprises.

    A row on which the network overflows has +inf everywhere, as its outlier score is.
    """

    names: tuple[str, ...]
    """Names of the P parts or layers."""
    values: NDArray[np.float64]
    """`[B, P]`: surprises, at least 0; higher = stranger."""

    def take(self, rows: Rows) -> Parts:
        """The surprises of some rows."""
        return replace(self, values=self.values[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Parts]) -> Parts:
        """Join those of consecutive rows."""
        return replace(parts[0], values=np.concatenate([p.values for p in parts]))


@dataclass(kw_only=True)
class RowScores:
    """What the device finds for B rows, the same whoever asks and at whatever alpha: verdicts come later."""

    nonconformity: NDArray[np.float64]
    """`[B, C]`: of every row with every class."""
    predicted_class: NDArray[np.int32]
    """`[B]`."""
    outlier_score: NDArray[np.float64]
    """`[B]`: nonconformity at the predicted class."""
    neighbors: Neighbors | None = None
    """Present when neighbours were asked for."""
    parts: Parts | None = None
    """Present when neighbours were asked for."""
    infer_seconds: float = 0.0
    """Time that the device took."""

    def __len__(self) -> int:
        return len(self.outlier_score)

    def take(self, rows: slice) -> RowScores:
        """The scores of some rows, as views."""
        return RowScores(
            nonconformity=self.nonconformity[rows],
            predicted_class=self.predicted_class[rows],
            outlier_score=self.outlier_score[rows],
            neighbors=None if self.neighbors is None else self.neighbors.take(rows),
            parts=None if self.parts is None else self.parts.take(rows),
            infer_seconds=self.infer_seconds,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[RowScores]) -> RowScores:
        """Join the scores of consecutive slices of one request; their times add up."""
        if len(parts) == 1:
            return parts[0]
        neighbors, respects = evidence_of(parts)
        return cls(
            nonconformity=np.concatenate([p.nonconformity for p in parts]),
            predicted_class=np.concatenate([p.predicted_class for p in parts]),
            outlier_score=np.concatenate([p.outlier_score for p in parts]),
            neighbors=neighbors,
            parts=respects,
            infer_seconds=sum(p.infer_seconds for p in parts),
        )


@dataclass(frozen=True, kw_only=True)
class ErrorBudget:
    """What stands behind the verdicts of one answer."""

    detector: str
    version: str
    digest: str
    """sha256 over the bundle's manifest: it names every file's own sha256."""
    device: str
    """Where it really runs: `cuda` or `cpu`; with commas between, one for each shard of the bank, or for each server
    that had a part of the rows."""
    guarantee: str
    """What alpha promises; see `softkin.verdicts`."""
    alpha: float
    """The rate the verdicts were made at."""
    confidence: float
    """The confidence with which `false_alarm_bound` holds, over the draw of the calibration rows."""
    p_value_threshold: float
    """Rows with a p-value at or below it are flagged; 0 where none is."""
    false_alarm_bound: float | None
    """The rate that false alarms at this threshold do not exceed, for this calibration set; the worst class's for
    `class_conditional`; None for `false_discovery_rate`, which is about a batch."""
    fewest_selectable: int | None
    """For `false_discovery_rate`: how many rows of the batch must have the smallest p-value before any is flagged; None
    where p-values are smoothed, because there is no smallest then."""
    calibration_size: int
    smallest_p_value: float
    """1 / (calibration_size + 1), for `class_conditional` of the smallest class: no alpha below it is accepted."""
    smoothed: bool
    """Whether ties and the p-values' steps were smoothed at random, from the caller's seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One answer: B rows, C classes. Higher outlier score = more outlying."""

    outlier_score: NDArray[np.float64]
    """`[B]`: nonconformity at the predicted class."""
    p_value: NDArray[np.float64]
    """`[B]`: conformal p-value of `outlier_score`, in [1/(n+1), 1], smoothed in (0, 1); among the calibration rows of
    the predicted class where the guarantee is `class_conditional`."""
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
    parts: Parts | None = None
    """Present when neighbours were asked for."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Time spent per stage: `infer`, `calibrate`, and over the wire `decode`, `queue`, `encode`."""

    def __len__(self) -> int:
        return len(self.outlier_score)

    def lists(self) -> dict[str, list[Any]]:
        """The arrays of one number per row as lists, made once for all requests that share this object.

        Protobuf takes them several times faster than NumPy scalars, and to cut a list is several times faster than to
        cut an array.
        """
        found: dict[str, list[Any]] | None = self.__dict__.get("_lists")
        if found is None:
            found = self.__dict__["_lists"] = {name: getattr(self, name).tolist() for name in ROW_ARRAYS}
        return found

    def take(self, rows: Rows) -> Scores:
        """The answer for some rows, with stage times of its own to fill. Not for `false_discovery_rate`."""
        return Scores(
            outlier_score=self.outlier_score[rows],
            p_value=self.p_value[rows],
            is_outlier=self.is_outlier[rows],
            predicted_class=self.predicted_class[rows],
            credibility=self.credibility[rows],
            confidence=self.confidence[rows],
            class_p_values=self.class_p_values[rows],
            budget=self.budget,
            neighbors=None if self.neighbors is None else self.neighbors.take(rows),
            parts=None if self.parts is None else self.parts.take(rows),
        )

    def __repr__(self) -> str:
        b, flagged = self.budget, int(self.is_outlier.sum())
        return f"Scores({len(self)} rows, {flagged} flagged at alpha={b.alpha:g} ({b.guarantee}), {b.detector})"


ROW_ARRAYS = ("outlier_score", "p_value", "is_outlier", "predicted_class", "credibility", "confidence")
"""The arrays of `Scores` that hold one number per row."""


def evidence_of(answers: Sequence[RowScores] | Sequence[Scores]) -> tuple[Neighbors | None, Parts | None]:
    """The evidence of consecutive rows, joined; None where it was not asked for."""
    neighbors = [a.neighbors for a in answers if a.neighbors is not None]
    parts = [a.parts for a in answers if a.parts is not None]
    return (
        Neighbors.concatenate(neighbors) if neighbors else None,
        Parts.concatenate(parts) if parts else None,
    )


class Share:
    """One request's share of scores that were judged together; `own` takes it out.

    Args:
        scores: of all the requests.
        rows: which of them are this request's; None for all.
        stage_seconds: of this request.
    """

    __slots__ = ("rows", "scores", "stage_seconds")

    def __init__(self, scores: Scores, rows: slice | None, stage_seconds: dict[str, float]) -> None:
        self.scores = scores
        self.rows = rows
        self.stage_seconds = stage_seconds

    def __len__(self) -> int:
        return len(self.scores) if self.rows is None else int(self.rows.stop - self.rows.start)

    def own(self) -> Scores:
        """The request's scores: views."""
        scores = self.scores.take(slice(None) if self.rows is None else self.rows)
        scores.stage_seconds.update(self.stage_seconds)
        return scores
