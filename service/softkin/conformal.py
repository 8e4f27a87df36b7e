"""Conformal p-values: how often an inlier looks at least as strange.

Exact under exchangeability of the calibration rows and the scored row (Vovk, Gammerman, Shafer 2005, ch. 2):
P(p <= alpha) <= alpha for every alpha; smoothed p-values have P(p <= alpha) = alpha, ties or not.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from softkin.arguments import as_float
from softkin.errors import InvalidInputError

Floats = NDArray[np.float64]
Side = Literal["left", "right"]
"""Of `numpy.searchsorted`: whether scores that are equal come after, or before."""
FEW = 1000
"""Among so many scores it costs more than it saves to look first which are beyond all that they are compared with."""


def p_values(scores: NDArray[np.floating], calibration: NDArray[np.floating], u: Floats | None = None) -> Floats:
    """`(1 + #{i : calibration_i >= score}) / (n + 1)`: ties count against the row, so alpha is never exceeded.

    With `u` smoothed, `(#{i : calibration_i > score} + u (1 + #{i : calibration_i = score})) / (n + 1)`: exactly
    uniform (Vovk, Gammerman, Shafer 2005).

    Args:
        scores: any shape; higher = stranger. +inf is allowed and gives the smallest p-value.
        calibration: `[n]` sorted ascending: scores of rows that neither the network nor the bank has seen.
        u: independent uniform numbers in (0, 1), of a shape that broadcasts to that of `scores`.

    Returns:
        Same shape as `scores`, in [1/(n+1), 1]; smoothed in (0, 1).
    """
    return _p_values(len(calibration), scores, partial(_positions, calibration, scores), u)


@dataclass(frozen=True)
class ScoresByClass:
    """Calibration scores, for counting those of one class alone."""

    scores: Floats
    """`[n]` ascending, of all classes."""
    keys: NDArray[np.int64]
    """`[n]` ascending: class * (n + 1) + place among all scores."""
    sizes: NDArray[np.intp]
    """`[C]`: how many each class has."""

    @classmethod
    def of(cls, scores: Floats, classes: NDArray[np.int32], num_classes: int) -> ScoresByClass:
        """Those of calibration rows: scores `[n]` ascending, and the class `[n]` of each in [0, C)."""
        n = len(scores)
        keys = np.sort(classes.astype(np.int64) * (n + 1) + np.arange(n))
        return cls(scores, keys, np.bincount(classes, minlength=num_classes))

    def positions(self, scores: Floats, classes: NDArray[np.integer], side: Side) -> NDArray[np.intp]:
        """As `numpy.searchsorted` among the scores of one class, for every score; the two shapes broadcast."""
        n, place = len(self.scores), _positions(self.scores, scores, side)
        classes = np.broadcast_to(classes, place.shape)
        found, near = self.sizes[classes], place < n
        j = classes[near]
        found[near] = np.searchsorted(self.keys, j * (n + 1) + place[near]) - (np.cumsum(self.sizes) - self.sizes)[j]
        return found


def class_conditional_p_values(
    scores: Floats, classes: NDArray[np.integer], calibration: ScoresByClass, u: Floats | None = None
) -> Floats:
    """P-values against the calibration rows of one class: P(p <= alpha | class) <= alpha (Mondrian).

    Vovk, Gammerman, Shafer 2005. A class without calibration rows gives 1, smoothed the random number alone.

    Args:
        scores: any shape.
        classes: the class of each score, by a rule that calibration rows got too; of a shape that broadcasts to
            theirs.
        calibration: by the same rule.
        u: for smoothed p-values, see `p_values`.

    Returns:
        Same shape as `scores`, at least 1 / (rows of the class + 1) unless smoothed.
    """
    return _p_values(calibration.sizes[classes], scores, partial(calibration.positions, scores, classes), u)


def _p_values(
    n: int | NDArray[np.intp],
    scores: NDArray[np.floating],
    positions: Callable[[Side], NDArray[np.intp]],
    u: Floats | None,
) -> Floats:
    # A NaN would sort past the end and read as the strangest score of all, hiding a fault of ours.
    assert not scores.size or not math.isnan(scores.max())  # which is NaN where any score is
    at_least = n - positions("left")
    if u is None:
        return np.asarray((1.0 + at_least) / (n + 1.0), np.float64)
    above = n - positions("right")
    return np.asarray((above + u * (1.0 + at_least - above)) / (n + 1.0), np.float64)


def _positions(calibration: NDArray[np.floating], scores: NDArray[np.floating], side: Side) -> NDArray[np.intp]:
    """As `numpy.searchsorted`; with many classes most scores lie beyond the last, and are not searched for."""
    n, a = len(calibration), np.asarray(scores)
    if a.size <= FEW or not n:
        return np.searchsorted(calibration, a, side)
    found = np.full(a.shape, n)
    near = a <= calibration[-1]
    found[near] = np.searchsorted(calibration, a[near], side)
    return found


def row_uniforms(seed: int, x: NDArray[np.generic]) -> Floats:
    """`[B]` numbers in (0, 1) for smoothing, from the seed and the bytes of each row of `x` `[B, ...]` alone.

    So a row gets the same number in any batch, at any place and from any server, and without the seed nobody can
    predict it. Over random seeds each is uniform (keyed BLAKE2b).

    Args:
        seed: in [0, 2^64).
        x: raw inputs.
    """
    key = operator.index(seed).to_bytes(8, "little")  # what NumPy's generators draw has no to_bytes
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest() for row in x)
    return np.asarray(((np.frombuffer(digests, "<u8") >> np.uint64(12)) + 0.5) * 2.0**-52)


def smallest_p_value(n: int) -> float:
    """The smallest p-value that n calibration rows can give: 1 / (n + 1)."""
    return 1.0 / (n + 1.0)


def rows_needed(alpha: float) -> int:
    """The fewest calibration rows that can give a p-value of alpha or less, but at most 10^18."""
    values = math.floor(1.0 / max(alpha, 1e-18))
    # Decided by comparing p-values in floating point, as flags are: the quotient may round to either side.
    return values - 1 + int(1.0 / values > alpha)


def rank(alpha: float, n: int) -> int:
    """How many of the n + 1 values that a p-value can take are at most alpha: floor(alpha (n + 1))."""
    k = math.floor(alpha * (n + 1))
    # Decided by comparing p-values in floating point, as flags are: alpha (n + 1) may round to either side.
    return k + int((k + 1) / (n + 1) <= alpha) - int(k / (n + 1) > alpha)


def rounded_up(rate: float) -> str:
    """A rate in (0, 1] to six digits, and never below it: what a message advises must be accepted as it stands."""
    text = f"{rate:.6g}"
    return text if float(text) >= rate else f"{rate + 10.0 ** (math.floor(math.log10(rate)) - 5):.6g}"


def check_alpha(alpha: float, n: int) -> float:
    """Return `alpha` if n calibration rows can honour it.

    Raises:
        InvalidInputError: alpha is not in (0, 1), or below 1 / (n + 1), where nothing could ever be flagged.
    """
    alpha = as_float("alpha", alpha)
    if not 0.0 < alpha < 1.0:  # also catches NaN
        raise InvalidInputError("alpha", f"got {alpha:g}; it is a false-alarm rate and must lie strictly in (0, 1)")
    if alpha < smallest_p_value(n):
        least = rounded_up(smallest_p_value(n))
        raise InvalidInputError(
            "alpha",
            f"got {alpha:g}, but {n} calibration rows cannot give a p-value below {least}, so nothing could be "
            f"flagged; use alpha >= {least} or at least {rows_needed(alpha)} calibration rows",
        )
    return alpha


def credibility(class_p_values_BC: Floats) -> Floats:
    """Largest class p-value (Papernot & McDaniel 2018, section IV). Returns `[B]`."""
    return np.asarray(class_p_values_BC.max(axis=1))


def confidence(class_p_values_BC: Floats) -> Floats:
    """One minus the second largest class p-value (Papernot & McDaniel 2018, section IV). `[B]`; 1 for one class."""
    others_BC = class_p_values_BC.copy()
    others_BC[np.arange(len(others_BC)), others_BC.argmax(axis=1)] = 0.0
    # Not by a partition: of a thousand classes most have the smallest p-value, and it takes a hundred times as long.
    return 1.0 - others_BC.max(axis=1)


def tail_surprise(scores: NDArray[np.floating], reference: NDArray[np.floating]) -> Floats:
    """Minus the log p-value of `scores` against `reference`, made continuous: puts different scores on one scale.

    Between reference scores the log p-value is interpolated; past the largest it goes on as an exponential tail whose
    mean excess is that of the top tenth, or 1 where those are equal to the rounding of float32. So two far outliers
    still differ, where plain p-values would tie at 1/(n+1).
    At a score that many reference rows have, all of them count as at least as strange.
    It is one fixed monotone function of the score, hence conformal p-values of sums of it stay exact as long as the
    calibration rows are not the reference rows.

    Args:
        scores: any shape.
        reference: `[n]` sorted ascending, n >= 1.

    Returns:
        Same shape, at least 0; about the standard exponential distribution for inliers.
    """
    return SurpriseLines.through(reference)(scores)


@dataclass(frozen=True)
class SurpriseLines:
    """The straight lines that make up `tail_surprise` against one reference, for using it again and again.

    Line i of n + 1 holds for scores above i reference scores and at most equal to the next.
    """

    starts: Floats
    """`[n + 1]`: the score at which each line starts."""
    slopes: Floats
    """`[n + 1]`."""
    heights: Floats
    """`[n + 1]`: the surprise at which each line starts."""

    @classmethod
    def through(cls, reference: NDArray[np.floating]) -> SurpriseLines:
        """The lines of a reference, as `tail_surprise` takes it."""
        n, r = len(reference), np.asarray(reference, np.float64)
        surprise = -np.log((n - np.arange(n)) / (n + 1.0))
        gaps = np.diff(r)
        slopes = np.divide(np.diff(surprise), gaps, out=np.zeros(n - 1), where=gaps > 0)  # no score is between equals
        top = r[int(0.9 * (n - 1)) :]
        mean_excess = float((top - top[0]).mean())
        if mean_excess <= np.finfo(np.float32).eps * max(1.0, abs(r[-1])):
            mean_excess = 1.0  # equal but for rounding, as the masses are float32: no scale, so take the score's own
        return cls(
            starts=np.concatenate([r[:1], r]),
            slopes=np.concatenate([[0.0], slopes, [1.0 / mean_excess]]),
            heights=np.concatenate([[0.0], surprise]),
        )

    def __call__(self, scores: NDArray[np.floating]) -> Floats:
        """The surprise of scores of any shape."""
        a = np.asarray(scores, np.float64)
        if a.size <= FEW:
            return self._searched(a)
        # With many classes most scores lie on the last line, and are not searched for.
        found = self.heights[-1] + self.slopes[-1] * (a - self.starts[-1])
        near = a <= self.starts[-1]
        found[near] = self._searched(a[near])
        return found

    def _searched(self, a: Floats) -> Floats:
        line = np.searchsorted(self.starts[1:], a)
        return np.asarray(self.heights[line] + self.slopes[line] * np.maximum(a - self.starts[line], 0.0))
