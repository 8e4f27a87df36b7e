"""Published scores that fit a model to the bank's rows: Mahalanobis, relative Mahalanobis, ViM, and k-th neighbours.

Higher = more outlying. Shapes: B rows, N bank rows, D width, C classes, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin_training.class_scatter import class_scatter
from softkin_training.rows import parts_of

Floats = NDArray[np.float64]
BLOCK_NUMBERS = 1 << 20
"""Distances of rows to classes held at once, in a few arrays of float64: thousands of classes make millions."""


@dataclass(frozen=True, kw_only=True)
class Mahalanobis:
    """One Gaussian per class with a shared covariance (Lee et al. 2018, eq. 1 and 2)."""

    means: Floats
    """`[C, D]`."""
    precision: Floats
    """`[D, D]`."""

    @classmethod
    def fit(cls, z_ND: NDArray[np.floating], labels_N: NDArray[np.integer]) -> Mahalanobis:
        """Fit to labelled rows.

        The pseudo-inverse stands for the inverse, as in the authors' code: directions without any variance, such as
        units that are dead on all training rows, do not count.
        """
        means, scatter = class_scatter(z_ND, labels_N)
        return cls(means=means, precision=np.asarray(np.linalg.pinv(scatter / len(z_ND), hermitian=True), np.float64))

    def score(self, z_BD: NDArray[np.floating]) -> Floats:
        """`[B]` squared Mahalanobis distance to the nearest class mean."""
        origin = self.means.mean(axis=0)  # near all of them, so that differences keep their digits
        means = self.means - origin
        means_scaled = means @ self.precision
        lengths = np.einsum("cd,cd->c", means_scaled, means)
        found = np.empty(len(z_BD))
        rows = max(1, BLOCK_NUMBERS // max(means.shape))
        for start in range(0, len(z_BD), rows):
            z = z_BD[start : start + rows].astype(np.float64) - origin
            # Which mean is nearest is one product for all classes; how near, by differences, which keep their digits.
            best = (lengths - 2.0 * (z @ means_scaled.T)).argmin(axis=1)
            off = z - means[best]
            found[start : start + rows] = np.einsum("bd,bd->b", off @ self.precision, off)
        return found


@dataclass(frozen=True, kw_only=True)
class RelativeMahalanobis:
    """Mahalanobis distance to the nearest class less that to all rows as one Gaussian (Ren et al. 2021, eq. 3)."""

    classes: Mahalanobis
    background: Mahalanobis

    @classmethod
    def fit(cls, z_ND: NDArray[np.floating], labels_N: NDArray[np.integer]) -> RelativeMahalanobis:
        """As `Mahalanobis.fit`."""
        return cls(
            classes=Mahalanobis.fit(z_ND, labels_N),
            background=Mahalanobis.fit(z_ND, np.zeros_like(labels_N)),
        )

    def score(self, z_BD: NDArray[np.floating]) -> Floats:
        """`[B]`, of either sign."""
        return self.classes.score(z_BD) - self.background.score(z_BD)


@dataclass(frozen=True, kw_only=True)
class ViM:
    """Virtual-logit matching (Wang et al. 2022): what of the features lies off the principal space, against the logits.

    `score = alpha |R^T (h - u)| - logsumexp_j logits_j(h)`, features h before the last linear layer `W h + b`, origin
    `u = -W^+ b`, R the directions of least second moment, and alpha the ratio of the mean largest logit to the mean
    norm off the principal space.
    """

    origin: Floats
    """`[D]`."""
    residual: Floats
    """`[D, R]` orthonormal columns."""
    alpha: float

    @classmethod
    def fit(
        cls,
        directions_ND: NDArray[np.floating],
        features_MD: NDArray[np.floating],
        largest_logits_M: NDArray[np.floating],
        weight_CD: NDArray[np.floating],
        bias_C: NDArray[np.floating],
        *,
        principal_dim: int | None = None,
    ) -> ViM:
        """Fit as published, or with a bank that holds features without their lengths.

        Args:
            directions_ND: training rows whose second moment gives the principal space: `features - origin`, as
                published; or features of unit norm, which a bank of metric cosine holds. On Fashion-MNIST the two came
                to mean AUROC .9951 and .9957, while everything on unit features came to .963.
            features_MD: rows that set alpha, of the known classes.
            largest_logits_M: the largest logit of each.
            weight_CD: W.
            bias_C: b.
            principal_dim: of the principal space; `default_principal_dim` when None.
        """
        width = directions_ND.shape[1]
        if principal_dim is None:
            principal_dim = default_principal_dim(width)
        origin, moments = vim_origin(weight_CD, bias_C), np.zeros((width, width))
        for x in _parts(directions_ND):
            moments += x.T @ x
        _, vectors = np.linalg.eigh(moments)  # ascending
        residual = vectors[:, : width - principal_dim]
        off = np.concatenate([np.linalg.norm((h - origin) @ residual, axis=1) for h in _parts(features_MD)]).mean()
        # Rows without anything off the principal space give no scale; then nothing of the kind can count.
        alpha = float(largest_logits_M.mean() / off) if off > 0 else 0.0
        return cls(origin=origin, residual=residual, alpha=alpha)

    def score(self, features_BD: NDArray[np.floating], logits_BC: NDArray[np.floating]) -> Floats:
        """`[B]`: virtual logit less the logsumexp of the real ones."""
        off = np.linalg.norm((features_BD.astype(np.float64) - self.origin) @ self.residual, axis=1)
        return np.asarray(self.alpha * off + mass.energy(logits_BC))


def _parts(rows_ND: NDArray[np.floating]) -> Iterator[Floats]:
    """Rows in float64, part by part."""
    return (rows_ND[part].astype(np.float64) for part in parts_of(len(rows_ND)))


def default_principal_dim(width: int) -> int:
    """Dimension of ViM's principal space: the authors' choices from width 768 up, half of it below, as in OpenOOD."""
    return 1000 if width >= 2048 else 512 if width >= 768 else width // 2


def vim_origin(weight_CD: NDArray[np.floating], bias_C: NDArray[np.floating]) -> Floats:
    """The features `[D]` of least norm whose logits are all zero in the least-squares sense: `-W^+ b`."""
    return np.asarray(-np.linalg.pinv(weight_CD.astype(np.float64)) @ bias_C.astype(np.float64))


def summed_distances(distances_LB: Floats, typical_L: Floats) -> Floats:
    """Sum of the k-th neighbour distances of several layers, each in units of its typical one.

    Our extension: Sun et al. 2022 use one layer.

    Args:
        distances_LB: `[L, B]` distance to the k-th neighbour in each layer.
        typical_L: `[L]` the same distance of a typical bank row, so that no layer dominates by its scale.

    Returns:
        `[B]`.
    """
    scale = np.where(typical_L > 0, typical_L, 1.0)
    return np.asarray((distances_LB / scale[:, None]).sum(axis=0))
