"""Published scores that use or change the features before the last linear layer: ReAct, SCALE, fDBD.

Higher = more outlying. Shapes: B rows, M fitting rows, D features, C classes; `logits = W h + b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin_training.network_head import boundary_weights

Floats = NDArray[np.float64]
REACT_QUANTILE = 0.9
"""Quantile of all features of inliers at which ReAct clips (Sun, Guo & Li 2021)."""
SCALE_QUANTILE = 0.85
"""Share of a row's features that SCALE leaves out of its divisor (Xu et al. 2024)."""


def react(
    features_BD: NDArray[np.floating], clip: float, weight_CD: NDArray[np.floating], bias_C: NDArray[np.floating]
) -> Floats:
    """Energy of the logits that clipped features make, ReAct (Sun, Guo & Li 2021, eq. 1 and 2). Returns `[B]`.

    Args:
        features_BD: h.
        clip: the largest value a feature keeps: the paper's is the `REACT_QUANTILE` of all features of inliers.
        weight_CD: W.
        bias_C: b.
    """
    return mass.energy(np.minimum(features_BD.astype(np.float64), clip) @ weight_CD.T + bias_C)


def scale(
    features_BD: NDArray[np.floating],
    weight_CD: NDArray[np.floating],
    bias_C: NDArray[np.floating],
    quantile: float = SCALE_QUANTILE,
) -> Floats:
    """Energy of the logits of features times `exp(sum / sum of the largest)`, SCALE (Xu et al. 2024, eq. 5 and 6).

    Args:
        features_BD: h >= 0, as a ReLU leaves them; a row of zeros keeps its logits.
        weight_CD: W.
        bias_C: b.
        quantile: share of the features that are not among the largest, in [0, 1); one of them is in any case.

    Returns:
        `[B]`.
    """
    h = features_BD.astype(np.float64)
    kept = max(1, h.shape[1] - round(h.shape[1] * quantile))
    largest = np.partition(h, -kept, axis=1)[:, -kept:].sum(axis=1)
    factor = np.exp(np.divide(h.sum(axis=1), largest, out=np.zeros(len(h)), where=largest > 0))
    return mass.energy((h * factor[:, None]) @ weight_CD.T + bias_C)


@dataclass(frozen=True, kw_only=True)
class FDBD:
    """Distance to the decision boundaries over that to the mean of the features (Liu & Qin 2024, eq. 4 to 7).

    `score = -mean_{c != f} (logit_f - logit_c) / |w_f - w_c| / |h - mean|` with f the predicted class.
    """

    mean: Floats
    """`[D]`."""
    weight: Floats
    """W, `[C, D]`, C >= 2."""
    bias: Floats
    """b, `[C]`."""

    def score(self, features_BD: NDArray[np.floating]) -> Floats:
        """`[B]`."""
        gaps_BC, off_B = self._gaps(features_BD)
        return -self._ratio(gaps_BC, off_B, gaps_BC.argmax(axis=1))

    def of_class(self, features_BD: NDArray[np.floating], classes_B: NDArray[np.integer]) -> Floats:
        """`[B]`: the ratio with `classes_B` in the place of the predicted ones, see `boundary.py`; larger = nearer."""
        return self._ratio(*self._gaps(features_BD), classes_B)

    def _ratio(self, gaps_BC: Floats, off_B: Floats, classes_B: NDArray[np.integer]) -> Floats:
        # Not picked from that of every class, which takes minutes where classes are thousands.
        weights_BC = self._weights[classes_B]
        own_B = np.take_along_axis(gaps_BC, classes_B[:, None], axis=1)[:, 0] * weights_BC.sum(axis=1)
        return np.asarray((own_B - np.einsum("bc,bc->b", gaps_BC, weights_BC)) / off_B)

    @cached_property
    def _weights(self) -> Floats:
        """`[C, C]`."""
        return boundary_weights(self.weight)

    def _gaps(self, features_BD: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Logits less the largest of each row `[B, C]`, and how far the features lie from the mean `[B]`."""
        h = features_BD.astype(np.float64)
        logits = h @ self.weight.T + self.bias
        off = np.linalg.norm(h - self.mean, axis=1)
        return logits - logits.max(axis=1, keepdims=True), np.maximum(off, np.finfo(np.float64).tiny)
