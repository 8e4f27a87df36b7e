"""The soft nearest neighbor loss as a function of distances and temperature, and its derivatives.

Shapes: L layers, each with its own temperature; B rows of a batch. `same` = of the same class and not the row itself.

    l(T)     = -mean_i log( sum_same exp(-d_ij / T) / sum_others exp(-d_ik / T) )      (Frosst et al. 2019, eq. 1)
    d l / d log T = sum_ik W_ik e_ik                     with e = d / T and W_ik = (p_all - p_same)_ik / #valid rows
    d2l / d log T2 = mean_i(Var_all e - Var_same e) - d l / d log T
    d l / d d_ik = -W_ik / T

On a GPU nothing here waits for a result: a number that the host reads, or branches on, would hold up the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HIDDEN = -1e30
"""The logit of what cannot be picked; finite, or its product with its probability of 0 would be NaN."""


@dataclass(frozen=True)
class Neighbours:
    """What the labels of a batch say, shared by all layers."""

    apart: Tensor
    """float32 `[B, B]`, added to logits: HIDDEN for pairs of two classes, else 0. The row of an invalid row is 0: its
    loss and its weights become exactly 0, without a special case anywhere."""
    num_valid: Tensor
    """int64 scalar: rows with a partner of their class; only they count."""
    divisor: Tensor
    """int64 scalar: the same, but at least 1."""

    @staticmethod
    def of(y: Tensor) -> Neighbours:
        """Read the labels `[B]`."""
        apart_BB = y.unsqueeze(0) != y.unsqueeze(1)
        valid_B = apart_BB.sum(dim=1) < len(y) - 1
        apart_BB &= valid_B.unsqueeze(1)
        num_valid = valid_B.sum()
        # Added once, where filling logits through a mask in every layer takes a CPU five times as long.
        return Neighbours(apart_BB * HIDDEN, num_valid, num_valid.clamp_min(1))


class Derivatives(NamedTuple):
    """How the loss changes with temperature, `[L]` each; all 0 where no row is valid."""

    slope: Tensor
    """d l / d log T."""
    curvature: Tensor
    """d2l / d log T2."""


def derivatives(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Derivatives:
    """In log T."""
    logits_LBB = _logits(distances_LBB, temperature_L)  # -e
    all_LBB = logits_LBB.softmax(dim=2)
    # Exactly 0 where both agree: a slope of mere rounding would move T by whole steps where the loss is flat in it.
    pull_LBB = all_LBB - (logits_LBB + neighbours.apart).softmax(dim=2)
    # Moments about the mean, or their difference would have no digits left where T is high and logits are alike.
    logits_LBB -= (all_LBB * logits_LBB).sum(dim=2, keepdim=True)
    pull_LBB *= logits_LBB
    mean_same_LB = -pull_LBB.sum(dim=2)
    variance_LB = pull_LBB.mul_(logits_LBB).sum(dim=2) + mean_same_LB.square()  # of all, less that of the class
    slope_L = mean_same_LB.sum(dim=1) / neighbours.divisor
    return Derivatives(slope_L, variance_LB.sum(dim=1) / neighbours.divisor - slope_L)


def loss(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Tensor:
    """`[L]`, means over valid rows."""
    return loss_and_weights(distances_LBB, neighbours, temperature_L)[0]


def loss_and_weights(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and `[L, B, B]` W times the divisor, which is exactly 0 in invalid rows."""
    logits_LBB = _logits(distances_LBB, temperature_L)
    nearest_LB, all_LBB = logits_LBB.amax(dim=2), logits_LBB.softmax(dim=2)
    logits_LBB += neighbours.apart
    nearest_same_LB, same_LBB = logits_LBB.amax(dim=2), logits_LBB.softmax(dim=2)
    # The logarithm of a sum of exponentials is the largest logit less the logarithm of its probability, which a softmax
    # has taken without overflow: two such logarithms are eq. 1.
    terms_LB = nearest_LB - nearest_same_LB + (same_LBB.amax(dim=2) / all_LBB.amax(dim=2)).log()
    return terms_LB.sum(dim=1) / neighbours.divisor, all_LBB.sub_(same_LBB)


def _logits(distances_LBB: Tensor, temperature_L: Tensor) -> Tensor:
    logits_LBB = distances_LBB / -temperature_L[:, None, None]
    logits_LBB.diagonal(dim1=1, dim2=2).fill_(HIDDEN)
    return logits_LBB


def loss_of_distances(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Tensor:
    """The losses `[L]`, differentiable once in distances and temperatures; 0 where no row has a partner."""
    return _Snnl.apply(distances_LBB, temperature_L, neighbours)  # type: ignore[no-untyped-call]


class _Snnl(torch.autograd.Function):
    """Keeps one `[L, B, B]` tensor, which is the gradient up to a factor."""

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
