"""The scores that others would use on the same network, bank and rows. Higher = more outlying, for all.

Shapes: B rows, N bank rows, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from softkin import conformal, mass

KTH = 50
"""k of the k-th-neighbour distance (Sun et al. 2022 use 50 on CIFAR-10)."""
DKNN_K = 75
"""Neighbours per layer of DkNN (Papernot & McDaniel 2018; 75 in the authors' code)."""

Floats = NDArray[np.float64]
Representations = Mapping[str, NDArray[np.float32]]


def max_softmax(logits_BC: NDArray[np.float32]) -> Floats:
    """Minus the largest softmax probability (Hendrycks & Gimpel 2017). Returns `[B]`."""
    logits = logits_BC.astype(np.float64)
    return -np.exp(logits.max(axis=1) - mass.logsumexp(logits, axis=1))


def kth_neighbor(z_BD: NDArray[np.float32], bank_ND: NDArray[np.float32], k: int = KTH) -> Floats:
    """Distance to the k-th nearest bank row, both normalised (Sun et al. 2022, eq. 2). Returns `[B]`."""
    bank = mass.unit_rows(bank_ND)
    k = min(k, len(bank))
    parts = [_cosine(z, bank) for z in _slices(z_BD)]
    return np.concatenate([np.sqrt(2.0 * np.partition(d, k - 1, axis=1)[:, k - 1]) for d in parts]).astype(np.float64)


def dknn_nonconformity(
    z: Representations, bank: Representations, bank_labels: NDArray[np.int64], num_classes: int, k: int = DKNN_K
) -> Floats:
    """Count of neighbours, over all layers, whose label is not j (Papernot & McDaniel 2018). Returns `[B, C]`."""
    total: Floats | None = None
    for name, z_BD in z.items():
        rows = mass.unit_rows(bank[name])
        top = min(k, len(rows))
        counts = []
        for part in _slices(z_BD):
            nearest = np.argpartition(_cosine(part, rows), top - 1, axis=1)[:, :top]
            labels = bank_labels[nearest]
            counts.append(np.stack([(labels != j).sum(axis=1) for j in range(num_classes)], axis=1))
        layer = np.concatenate(counts).astype(np.float64)
        total = layer if total is None else total + layer
    assert total is not None
    return total


def dknn_credibility(nonconformity_BC: Floats, calibration_true: Floats) -> Floats:
    """One minus DkNN's credibility: calibrated on true labels, as published. Returns `[B]`."""
    p_BC = conformal.p_values(nonconformity_BC, np.sort(calibration_true))
    return 1.0 - conformal.credibility(p_BC)


def _cosine(z_BD: NDArray[np.float32], unit_bank_ND: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.maximum(1.0 - mass.unit_rows(z_BD) @ unit_bank_ND.T, 0.0)


def _slices(z_BD: NDArray[np.float32], rows: int = 512) -> list[NDArray[np.float32]]:
    return [z_BD[i : i + rows] for i in range(0, len(z_BD), rows)]
