"""The soft nearest neighbor loss as a function of distances and temperature, and its derivatives.

Shapes: L layers, each with its own temperature; B rows of a batch. `same` = of the same class and not the row itself.

    l(T)     = -mean_i log( sum_same exp(-d_ij / T) / sum_others exp(-d_ik / T) )      (Frosst et al. 2019, eq. 1)
    d l / d log T = sum_ik W_ik e_ik                     with e = d / T and W_ik = (p_all - p_same)_ik / #valid rows
    d2l / d log T2 = mean_i(Var_all e - Var_same e) - d l / d log T
    d l / d d_ik = -W_ik / T

p_all is the softmax of -e over all other rows, p_same that over the same class alone; Var is taken under either.
Nothing here waits for a GPU: a number that Python reads, or branches on, would hold up the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MASKED = -1e30
"""The logit of what is no neighbour; finite, because infinity times its probability, 0, would be NaN."""


@dataclass(frozen=True)
class Neighbours:
    """Which rows of a batch are of the same class: the same for all layers."""

    mask: Tensor
    """float32 `[B, B]`, added to logits: MASKED for rows of different classes, else 0. A row of the batch that has no
    partner is all 0: so its loss and its weights become exactly 0, without a special case anywhere."""
    num_valid: Tensor
    """int64 scalar: rows that have a partner, another row of their class; only they count."""
    divisor: Tensor
    """int64 scalar: `num_valid`, but at least 1."""

    @staticmethod
    def of(y: Tensor) -> Neighbours:
        """Compare the labels `[B]`."""
        differ_BB = y.unsqueeze(0) != y.unsqueeze(1)
        valid_B = differ_BB.sum(dim=1) < len(y) - 1
        differ_BB &= valid_B.unsqueeze(1)
        num_valid = valid_B.sum()
        # Added once, where filling logits through a mask in every layer takes a CPU five times as long.
        return Neighbours(differ_BB * MASKED, num_valid, num_valid.clamp_min(1))


class Derivatives(NamedTuple):
    """How the loss changes with temperature, `[L]` each; all 0 where no row is valid."""

    slope: Tensor
    """d l / d log T."""
    curvature: Tensor
    """d2l / d log T2."""


def derivatives(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Derivatives:
    """First and second derivative of the loss in log T, at temperatures `[L]`."""
    logits_LBB = _logits(distances_LBB, temperature_L)  # -e
    all_LBB = logits_LBB.softmax(dim=2)
    # Exactly 0 where both agree: a slope of mere rounding would move T by whole steps where the loss is flat in it.
    pull_LBB = all_LBB - (logits_LBB + neighbours.mask).softmax(dim=2)
    # Moments about the mean, or their difference would have no digits left where T is high and logits are alike.
    logits_LBB -= (all_LBB * logits_LBB).sum(dim=2, keepdim=True)
    pull_LBB *= logits_LBB
    mean_same_LB = -pull_LBB.sum(dim=2)
    variance_LB = pull_LBB.mul_(logits_LBB).sum(dim=2) + mean_same_LB.square()  # of all, less that of the class
    slope_L = mean_same_LB.sum(dim=1) / neighbours.divisor
    return Derivatives(slope_L, variance_LB.sum(dim=1) / neighbours.divisor - slope_L)


def loss(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Tensor:
    """The losses `[L]`, means over valid rows."""
    return loss_and_weights(distances_LBB, neighbours, temperature_L)[0]


def loss_and_weights(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> tuple[Tensor, Tensor]:
    """The losses `[L]`, and W of the equations above times `divisor`: `[L, B, B]`, exactly 0 in invalid rows."""
    logits_LBB = _logits(distances_LBB, temperature_L)
    nearest_LB, all_LBB = logits_LBB.amax(dim=2), logits_LBB.softmax(dim=2)
    logits_LBB += neighbours.mask
    nearest_same_LB, same_LBB = logits_LBB.amax(dim=2), logits_LBB.softmax(dim=2)
    # The logarithm of a sum of exponentials is the largest logit less the logarithm of its probability, which a softmax
    # has taken without overflow: two such logarithms are eq. 1.
    terms_LB = nearest_LB - nearest_same_LB + (same_LBB.amax(dim=2) / all_LBB.amax(dim=2)).log()
    return terms_LB.sum(dim=1) / neighbours.divisor, all_LBB.sub_(same_LBB)


def _logits(distances_LBB: Tensor, temperature_L: Tensor) -> Tensor:
    logits_LBB = distances_LBB / -temperature_L[:, None, None]
    logits_LBB.diagonal(dim1=1, dim2=2).fill_(MASKED)
    return logits_LBB


def loss_of_distances(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Tensor:
    """The losses `[L]`, differentiable once in distances and temperatures; 0 where no row has a partner."""
    return _Snnl.apply(distances_LBB, temperature_L, neighbours)  # type: ignore[no-untyped-call]


class _Snnl(torch.autograd.Function):
    """Keeps one `[L, B, B]` tensor for the backward pass: the gradient up to a factor."""

    @staticmethod
    def forward(ctx: Any, distances_LBB: Tensor, temperature_L: Tensor, neighbours: Neighbours) -> Tensor:
        loss_L, weight_LBB = loss_and_weights(distances_LBB, neighbours, temperature_L)
        slope_L = None  # dl/dT
        if ctx.needs_input_grad[1]:
            slope_L = (weight_LBB * distances_LBB).sum(dim=(1, 2)) / neighbours.divisor / temperature_L.square()
        ctx.save_for_backward(weight_LBB, temperature_L, slope_L)
        ctx.divisor = neighbours.divisor
        return loss_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_L: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight_LBB, temperature_L, slope_L = ctx.saved_tensors
        scale_L = grad_L / temperature_L / -ctx.divisor
        return weight_LBB * scale_L[:, None, None], None if slope_L is None else grad_L * slope_L, None
