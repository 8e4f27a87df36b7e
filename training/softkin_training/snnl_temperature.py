"""The temperature that minimises the loss (Frosst et al. 2019, eq. 2): found from nothing, or followed over batches."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softkin_training.snnl_math import Neighbours, derivatives, loss

LOG_TEMPERATURE_SPAN = math.log(1e3)
"""Temperatures from 1e-3 to 1e3 times the typical distance are searched."""
GRID_POINTS = 31
MAX_NEWTON_STEP = 0.7
"""Largest change of log T per step: a factor of two."""


class TemperatureMinimum(NamedTuple):
    """The minimiser of the loss over temperature."""

    temperature: float
    value: float
    at_bound: bool
    """The loss still falls at the end of the range: fully entangled (upper end) or fully apart (lower end)."""


@torch.no_grad()
def search(distances_BB: Tensor, neighbours: Neighbours) -> TemperatureMinimum:
    """Find the minimiser of one layer: a log grid of 1e-3 to 1e3 times the median distance, then Newton's method.

    The loss is not convex in T, so the grid finds the basin; Newton steps on log T refine inside it.
    Where no row is valid, or all distances are 0, every temperature is equal and 1 is returned.
    """
    if not bool(neighbours.num_valid > 0):
        return TemperatureMinimum(1.0, 0.0, at_bound=False)

    def at(log_t: float) -> tuple[Tensor, Neighbours, Tensor]:
        return distances_BB.unsqueeze(0), neighbours, distances_BB.new_tensor([math.exp(log_t)])

    off_diagonal = distances_BB[~torch.eye(len(distances_BB), dtype=torch.bool, device=distances_BB.device)]
    typical = float(off_diagonal.median())
    if typical == 0:  # more than half the pairs coincide: the others set the scale
        typical = float(off_diagonal.mean())
    if not typical > 0:
        return TemperatureMinimum(1.0, float(loss(*at(0.0))), at_bound=False)

    centre, spacing = math.log(typical), 2 * LOG_TEMPERATURE_SPAN / (GRID_POINTS - 1)
    grid = [centre - LOG_TEMPERATURE_SPAN + i * spacing for i in range(GRID_POINTS)]
    best_value, best = min((float(loss(*at(u))), u) for u in grid)
    low, high = max(best - spacing, grid[0]), min(best + spacing, grid[-1])
    log_t = best
    for _ in range(40):
        value, slope, curvature = (float(v) for v in (loss(*at(log_t)), *derivatives(*at(log_t))))
        if value < best_value:
            best_value, best = value, log_t
        low, high = (log_t, high) if slope < 0 else (low, log_t)
        newton = log_t - slope / curvature if curvature > 0 else math.nan
        step_to = newton if low < newton < high else (low + high) / 2
        if abs(step_to - log_t) < 1e-9:
            break
        log_t = step_to
    at_bound = min(best - grid[0], grid[-1] - best) < 1e-6
    return TemperatureMinimum(math.exp(best), best_value, at_bound)


@torch.no_grad()
def follow(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor, steps: int) -> Tensor:
    """Move temperatures towards the minimisers of this batch by clipped Newton steps on log T.

    Args:
        distances_LBB: of the batch, layer by layer.
        neighbours: of the batch; without a valid row nothing moves, nor where all distances are 0.
        temperature_L: > 0, the last batch's.
        steps: how many.
    """
    smallest = torch.finfo(distances_LBB.dtype).tiny
    before_L = temperature_L.to(distances_LBB.dtype)
    log_t_L = before_L.log()
    # Bounds follow the batch, so a run cannot drift into temperatures where the kernel is flat or 0 everywhere.
    mean_L = distances_LBB.mean(dim=(1, 2))
    typical_L = mean_L.clamp_min(smallest).log()
    low_L, high_L = typical_L - LOG_TEMPERATURE_SPAN, typical_L + LOG_TEMPERATURE_SPAN
    for _ in range(steps):
        slope_L, curvature_L = derivatives(distances_LBB, neighbours, log_t_L.exp())
        # |curvature| makes every step a descent; on the plateaus at both ends the quotient tends to +-1.
        step_L = -slope_L / curvature_L.abs().clamp_min(smallest)
        log_t_L = log_t_L + step_L.nan_to_num(0.0).clamp(-MAX_NEWTON_STEP, MAX_NEWTON_STEP)
        log_t_L = log_t_L.clamp(low_L, high_L)
    return torch.where((neighbours.num_valid > 0) & (mean_L > 0), log_t_L.exp(), before_L)
