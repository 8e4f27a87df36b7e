"""How mixed the classes of a set of rows are: for analysis, in float64, not differentiable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softkin.errors import InvalidInputError
from softkin.mass import Metric
from softkin_training.distances import flat_rows, pairwise_distances
from softkin_training.snnl_math import Neighbours
from softkin_training.snnl_temperature import TemperatureMinimum, search


@dataclass(frozen=True)
class Entanglement:
    """How mixed the classes of one set of rows are. Compare only values of equal row counts and class mix."""

    value: float
    """SNNL at the temperature that minimises it (Frosst et al. 2019, eq. 2)."""
    temperature: float
    """That temperature, in units of the metric."""
    chance: float
    """The value if labels told nothing."""
    ratio: float
    """value / chance: 0 = apart, 1 = fully entangled; NaN where no row has a partner or chance is 0 (one class)."""
    valid_rows: int
    """Rows with at least one other row of their class; only they count."""
    at_bound: bool
    """The minimiser lies at the end of the searched range."""


def entanglement(z: Tensor, y: Tensor, *, metric: Metric = "squared_euclidean") -> Entanglement:
    """Measure the entanglement of a layer: SNNL minimised over temperature (eq. 2), beside its chance level.

    Takes O(B^2) memory and float64; not differentiable (train with `LayeredSnnl`, or with
    `soft_nearest_neighbor_loss` at the temperature of `minimize_temperature`, which has the same gradient).

    Args:
        z: `[B, ...]` activations, flattened per row.
        y: `[B]` integer labels.
        metric: see `soft_nearest_neighbor_loss`; the value does not depend on the scale of `z` for either.

    Raises:
        InvalidInputError: shapes that do not fit, or an unknown metric.
    """
    least = minimize_temperature(z, y, metric=metric)
    valid_rows, chance = int(Neighbours.of(y).num_valid), chance_level(y)
    ratio = least.value / chance if chance > 0 else math.nan
    return Entanglement(least.value, least.temperature, chance, ratio, valid_rows, least.at_bound)


def entanglement_between(a: Tensor, b: Tensor, *, metric: Metric = "squared_euclidean") -> Entanglement:
    """Entanglement of two sets of rows, `[N, ...]` and `[M, ...]`, such as inliers and outliers: ratio 1 = mixed.

    Raises:
        InvalidInputError: rows of the two differ in how many numbers they have, or an unknown metric.
    """
    if min(a.ndim, b.ndim) < 2 or a.shape[1:].numel() != b.shape[1:].numel():
        shapes = f"are {tuple(a.shape)} and {tuple(b.shape)}"
        raise InvalidInputError("a, b", f"{shapes}; they must be [N, ...] and [M, ...], rows of equally many numbers")
    y = torch.cat([torch.zeros(len(a), dtype=torch.long), torch.ones(len(b), dtype=torch.long)])
    return entanglement(torch.cat([a.flatten(1), b.flatten(1)]), y.to(a.device), metric=metric)


def chance_level(y: Tensor) -> float:
    """SNNL at infinite temperature: mean of log((B - 1) / (n_y - 1)) over rows with a partner; 0 without any."""
    _, group_B, counts = torch.unique(y, return_inverse=True, return_counts=True)
    partners_B = counts[group_B].double() - 1
    valid = partners_B > 0
    return float(torch.log((len(y) - 1) / partners_B[valid]).mean()) if bool(valid.any()) else 0.0


@torch.no_grad()
def minimize_temperature(z: Tensor, y: Tensor, *, metric: Metric = "squared_euclidean") -> TemperatureMinimum:
    """Find the temperature that minimises SNNL; see `snnl_temperature.search`.

    Args:
        z: `[B, ...]` activations, flattened per row.
        y: `[B]` integer labels.
        metric: see `soft_nearest_neighbor_loss`.

    Raises:
        InvalidInputError: shapes that do not fit, or an unknown metric.
    """
    return search(pairwise_distances(flat_rows(z, y).double(), metric), Neighbours.of(y))
