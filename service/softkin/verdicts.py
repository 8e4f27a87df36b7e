"""From p-values to verdicts: which guarantee a caller asks for, and what it comes to with the calibration rows at hand.

marginal                flags p <= alpha: false alarms are at most alpha, on average over calibration sets
certified               flags fewer rows: with the stated confidence this calibration set's own rate is at most alpha
class_conditional       the marginal one for every predicted class by itself, on p-values of that class (Mondrian)
false_discovery_rate    selects among the rows of one batch: at most alpha of those flagged are inliers, in expectation
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from softkin import certificate, selection
from softkin.arguments import as_float
from softkin.certificate import DEFAULT_CONFIDENCE
from softkin.conformal import check_alpha, rank, rounded_up, smallest_p_value
from softkin.errors import InvalidInputError
from softkin.scores import ErrorBudget

Guarantee = Literal["marginal", "certified", "class_conditional", "false_discovery_rate"]
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """The verdicts of one batch, and what they rest on."""

    is_outlier: NDArray[np.bool_]
    """`[B]`: p-value <= `p_value_threshold`."""
    p_value_threshold: float
    """0 where nothing is flagged."""
    false_alarm_bound: float | None
    """The rate that false alarms do not exceed with the rule's confidence, for this calibration set; the worst class's
    for `class_conditional`, None for `false_discovery_rate`."""
    fewest_selectable: int | None
    """For `false_discovery_rate`: how many rows of the batch must have the smallest p-value before any is flagged; None
    where p-values are smoothed, because there is no smallest then."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How verdicts are made; `check_rule` makes one that can be kept."""

    guarantee: Guarantee
    alpha: float
    confidence: float
    """Confidence of `certified`, and of the bound that every answer states."""
    calibration_size: int
    class_sizes: tuple[int, ...]
    """Calibration rows by predicted class."""
    smoothed: bool

    _budgets: dict[str, ErrorBudget] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def smallest_p_value(self) -> float:
        """The smallest p-value without smoothing, 1 / (n + 1); for `class_conditional` that of the smallest class."""
        return smallest_p_value(
            min(self.class_sizes) if self.guarantee == "class_conditional" else self.calibration_size
        )

    def decide(self, p_values: NDArray[np.float64]) -> Verdicts:
        """Verdicts on a whole batch.

        Args:
            p_values: `[B]`; those of the predicted class for `class_conditional`.
        """
        if self.guarantee == "false_discovery_rate":
            return select(p_values, self.calibration_size, self.alpha, smoothed=self.smoothed)
        threshold, bound = self._fixed
        return Verdicts(
            is_outlier=p_values <= threshold,
            p_value_threshold=threshold,
            false_alarm_bound=bound,
            fewest_selectable=None,
        )

    @cached_property
    def _fixed(self) -> tuple[float, float]:
        """Threshold and false-alarm bound, where they do not depend on the batch."""
        n, threshold = self.calibration_size, self.alpha
        if self.guarantee == "certified":
            largest = certificate.smoothed_certified if self.smoothed else certificate.certified_rank
            threshold = largest(self.alpha, n, self.confidence) / (n + 1)
        sizes = set(self.class_sizes) if self.guarantee == "class_conditional" else {n}
        return threshold, max(self._bound(threshold, size) for size in sizes)

    def budget(self, verdicts: Verdicts, *, detector: str, version: str, digest: str, device: str) -> ErrorBudget:
        """What stands behind verdicts of this rule by that detector."""
        if self.guarantee == "false_discovery_rate":
            return self._budget(verdicts, detector, version, digest, device)
        # The same for every request: made once for each detector.
        if digest not in self._budgets:
            self._budgets[digest] = self._budget(verdicts, detector, version, digest, device)
        return self._budgets[digest]

    def _budget(self, verdicts: Verdicts, detector: str, version: str, digest: str, device: str) -> ErrorBudget:
        return ErrorBudget(
            detector=detector,
            version=version,
            digest=digest,
            device=device,
            guarantee=self.guarantee,
            alpha=self.alpha,
            confidence=self.confidence,
            p_value_threshold=verdicts.p_value_threshold,
            false_alarm_bound=verdicts.false_alarm_bound,
            fewest_selectable=verdicts.fewest_selectable,
            calibration_size=self.calibration_size,
            smallest_p_value=self.smallest_p_value,
            smoothed=self.smoothed,
        )

    def _bound(self, threshold: float, n: int) -> float:
        if self.smoothed:
            return certificate.smoothed_bound(threshold * (n + 1), n, self.confidence)
        return certificate.false_alarm_bound(rank(threshold, n), n, self.confidence)


def select(p_values: NDArray[np.float64], n: int, rate: float, *, smoothed: bool) -> Verdicts:
    """Verdicts of `false_discovery_rate` on a whole batch of p-values `[B]` from n calibration rows."""
    threshold = selection.selection_threshold(p_values, rate)
    return Verdicts(
        is_outlier=p_values <= threshold,
        p_value_threshold=threshold,
        false_alarm_bound=None,
        fewest_selectable=None if smoothed else selection.fewest_selectable(len(p_values), n, rate),
    )


def check_rule(
    guarantee: str,
    *,
    alpha: float,
    confidence: float = DEFAULT_CONFIDENCE,
    calibration_size: int,
    class_sizes: Sequence[int],
    classes: Sequence[str] = (),
    smoothed: bool = False,
) -> Rule:
    """The rule, if the calibration rows can honour it.

    Args:
        guarantee: one of `GUARANTEES`.
        alpha: the rate that the guarantee is about, in (0, 1).
        confidence: over the draw of the calibration rows, in (0, 1).
        calibration_size: n.
        class_sizes: calibration rows by predicted class.
        classes: their names, for errors, which otherwise give a class's number.
        smoothed: whether the p-values are.

    Raises:
        InvalidInputError: names the argument, its value, what is allowed, and how many calibration rows would do.
    """
    guarantee = check_guarantee(guarantee)
    alpha, confidence = as_float("alpha", alpha), as_float("confidence", confidence)
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError("confidence", f"got {confidence:g}; it must lie strictly in (0, 1)")
    if 0.0 < alpha < 1.0:  # the strictest demand first: its remedy satisfies the others too
        if guarantee == "certified":
            _check_certified(alpha, calibration_size, confidence)
        if guarantee == "class_conditional":
            _check_class_sizes(alpha, class_sizes, classes)
    check_alpha(alpha, calibration_size)
    return Rule(
        guarantee=guarantee,
        alpha=alpha,
        confidence=confidence,
        calibration_size=calibration_size,
        class_sizes=tuple(class_sizes),
        smoothed=smoothed,
    )


def _check_certified(alpha: float, n: int, confidence: float) -> None:
    if not certificate.certified_rank(alpha, n, confidence):
        least = rounded_up(certificate.smallest_certified(n, confidence))
        raise InvalidInputError(
            "alpha",
            f"got {alpha:g}, but {n} calibration rows certify nothing below {least} at confidence {confidence:g}; use "
            f"alpha >= {least}, a lower confidence, or at least {certificate.rows_to_certify(alpha, confidence)} "
            "calibration rows",
        )


def check_guarantee(guarantee: str) -> Guarantee:
    """Return it, if it is one.

    Raises:
        InvalidInputError: names those there are.
    """
    for known in GUARANTEES:
        if guarantee == known:
            return known
    raise InvalidInputError("guarantee", f"got {reprlib.repr(guarantee)}; allowed: {', '.join(GUARANTEES)}")


def _check_class_sizes(alpha: float, class_sizes: Sequence[int], classes: Sequence[str]) -> None:
    rows = min(class_sizes)
    number = class_sizes.index(rows)
    name = repr(classes[number]) if classes else str(number)
    if rows == 0:
        raise InvalidInputError(
            "guarantee",
            f"class_conditional, but class {name} has no calibration rows; use guarantee marginal, or calibrate with "
            "rows of it",
        )
    least = rounded_up(smallest_p_value(rows))
    if alpha < smallest_p_value(rows):
        raise InvalidInputError(
            "alpha",
            f"got {alpha:g}, but class {name} has only {rows} calibration rows, which cannot give a "
            f"p-value below {least}; use alpha >= {least}, guarantee marginal, or more calibration rows",
        )
