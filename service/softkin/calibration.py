"""The scores of the calibration rows, and the p-values they give."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from softkin.conformal import ScoresByClass, class_conditional_p_values, p_values

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Sorted scores of rows that neither the network nor the bank has seen."""

    outlier_scores: Floats
    """`[n]` ascending: label-free scores, behind p-values."""
    predicted_classes: NDArray[np.int32]
    """`[n]` classes that the network predicted, in the order of `outlier_scores`."""
    true_class_scores: Floats
    """`[m]` ascending: nonconformity at the true class, behind class p-values; of the rows whose label is known."""
    true_classes: NDArray[np.int32]
    """`[m]` classes in the order of `true_class_scores`."""
    references: dict[str, Floats] = field(default_factory=dict)
    """Per part of the joint form: its sorted scores on the reference rows, disjoint from the n rows above."""
    layer_terms: dict[str, Floats] = field(default_factory=dict)
    """Per layer of the other forms: `[n]` ascending, its terms in `outlier_scores`; evidence alone rests on them."""

    _split: dict[int, tuple[ScoresByClass, ScoresByClass]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.outlier_scores)

    def rows_by_predicted_class(self, num_classes: int) -> tuple[int, ...]:
        """`[C]`: how many calibration rows were predicted to be of each class."""
        return tuple(np.bincount(self.predicted_classes, minlength=num_classes).tolist())

    def marginal(self, scores_B: Floats, nonconformity_BC: Floats, u_B: Floats | None) -> tuple[Floats, Floats]:
        """P-values `[B]` and class p-values `[B, C]` against all calibration rows; `u_B` smooths them."""
        u_B1 = None if u_B is None else u_B[:, None]
        return p_values(scores_B, self.outlier_scores, u_B), p_values(nonconformity_BC, self.true_class_scores, u_B1)

    def class_conditional(
        self, scores_B: Floats, predicted_B: NDArray[np.int32], nonconformity_BC: Floats, u_B: Floats | None
    ) -> tuple[Floats, Floats]:
        """The same: p-values among rows of the predicted class, each class p-value among rows of that true class."""
        by_predicted, by_true = self._by_class(nonconformity_BC.shape[1])
        u_B1 = None if u_B is None else u_B[:, None]
        every_class = np.arange(nonconformity_BC.shape[1])
        return (
            class_conditional_p_values(scores_B, predicted_B, by_predicted, u_B),
            class_conditional_p_values(nonconformity_BC, every_class, by_true, u_B1),
        )

    def _by_class(self, num_classes: int) -> tuple[ScoresByClass, ScoresByClass]:
        """Calibration scores by predicted class, and by true class; split once, not for each request."""
        if num_classes not in self._split:
            self._split[num_classes] = (
                ScoresByClass.of(self.outlier_scores, self.predicted_classes, num_classes),
                ScoresByClass.of(self.true_class_scores, self.true_classes, num_classes),
            )
        return self._split[num_classes]
