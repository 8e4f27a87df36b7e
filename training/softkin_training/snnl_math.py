"""The soft nearest neighbor loss as a function of distances and temperature, and its derivatives.

Shapes: L layers, each with its own temperature; B rows of a batch. `same` = of the same class and not the row itself.

    l(T)     = -mean_i log( sum_same exp(-d_ij / T) / sum_others exp(-d_ik / T) )      (Frosst et al. 2019, eq. 1)
    d l / d log T = sum_ik W_ik e_ik                     with e = d / T and W_ik = (p_all - p_same)_ik / #valid rows
    d2l / d log T2 = mean_i(Var_all e - Var_same e) - d l / d log T
    d l / d d_ik = -W_ik / T

On a GPU nothing here waits for a result: a number that the host reads, or branches on, would hold up the whole step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HIDDEN = -1e30
"""The logit of a row's distance to itself; finite, or products with its kernel of 0 would be NaN."""
SMALLEST_SUM = 1e-25
"""Below it the same-class part of a float32 sum may have lost terms to underflow."""


@dataclass(frozen=True)
class Neighbours:
    """What the labels of a batch say, shared by all layers."""

    same: Tensor
    """float32 `[B, B]`, 1 for pairs of one class, else 0; 0 on the diagonal. The row of an invalid row has 1 for all
    others: its loss and its weights become exactly 0, without a special case anywhere."""
    apart: Tensor
    """bool `[B, B]`, where `same` is 0."""
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
        apart_BB.fill_diagonal_(True)
        num_valid = valid_B.sum()
        return Neighbours((~apart_BB).to(torch.float32), apart_BB, num_valid, num_valid.clamp_min(1))


class Derivatives(NamedTuple):
    """How the loss changes with temperature, `[L]` each; all 0 where no row is valid."""

    slope: Tensor
    """d l / d log T."""
    curvature: Tensor
    """d2l / d log T2."""


class Kernel(NamedTuple):
    """exp(-d / T), each row relative to its nearest neighbour, and what follows from it; of B >= 2 rows."""

    neighbours: Neighbours
    logits: Tensor
    """`[L, B, B]`, at most 0."""
    all: Tensor
    """`[L, B, B]`, exp(logits); 0 on the diagonal."""
    total: Tensor
    """`[L, B, 1]`, its sums."""
    same: Tensor
    """`[L, B, B]`, exp(logits - lead) for pairs of one class, else 0."""
    own: Tensor
    """`[L, B, 1]`, its sums."""
    lead: Tensor | None
    """`[L, B, 1]`, largest logit of the class where exp(logits) alone would underflow; else None, for 0."""

    @staticmethod
    def of(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Kernel:
        """At a temperature of each layer."""
        logits_LBB = distances_LBB / -temperature_L[:, None, None]
        logits_LBB.diagonal(dim1=1, dim2=2).fill_(HIDDEN)
        logits_LBB -= logits_LBB.amax(dim=2, keepdim=True)
        if distances_LBB.device.type == "cpu":
            # exp takes ten times as long where it underflows, which it does for most pairs at low temperature.
            floored_LBB = logits_LBB.clamp_min(math.log(torch.finfo(logits_LBB.dtype).tiny) + 1)
            all_LBB = floored_LBB.exp()
            all_LBB.diagonal(dim1=1, dim2=2).zero_()
            same_LBB = all_LBB * neighbours.same
            own_LB1 = same_LBB.sum(dim=2, keepdim=True)
            if bool(own_LB1.min() > SMALLEST_SUM):
                total_LB1 = all_LBB.sum(dim=2, keepdim=True)
                return Kernel(neighbours, floored_LBB, all_LBB, total_LB1, same_LBB, own_LB1, None)
        all_LBB = logits_LBB.exp()
        apart_LBB = logits_LBB.masked_fill(neighbours.apart, -math.inf)
        lead_LB1 = apart_LBB.amax(dim=2, keepdim=True)
        same_LBB = (apart_LBB - lead_LB1).exp_()
        total_LB1, own_LB1 = all_LBB.sum(dim=2, keepdim=True), same_LBB.sum(dim=2, keepdim=True)
        return Kernel(neighbours, logits_LBB, all_LBB, total_LB1, same_LBB, own_LB1, lead_LB1)

    def loss(self) -> Tensor:
        """`[L]`, means over valid rows."""
        terms_LB1 = self.total.log() - self.own.log()
        terms_LB1 = terms_LB1 if self.lead is None else terms_LB1 - self.lead
        return terms_LB1.sum(dim=(1, 2)) / self.neighbours.divisor

    def weights(self) -> Tensor:
        """`[L, B, B]`, W times the divisor; exactly 0 in invalid rows. Uses the kernel up."""
        return self.all.div_(self.total).sub_(self.same.div_(self.own))

    def derivatives(self) -> Derivatives:
        """In log T."""
        mean_all_LB, var_all_LB = _moments(self.all, self.logits, self.total)
        logits_LBB = self.logits if self.lead is None else self.logits - self.lead
        mean_same_LB, var_same_LB = _moments(self.same, logits_LBB, self.own)
        if self.lead is not None:
            mean_same_LB = mean_same_LB + self.lead.squeeze(2)
        divisor = self.neighbours.divisor
        slope_L = (mean_same_LB - mean_all_LB).sum(dim=1) / divisor  # logits are -e but for a constant
        return Derivatives(slope_L, (var_all_LB - var_same_LB).sum(dim=1) / divisor - slope_L)


def _moments(kernel_LBB: Tensor, logits_LBB: Tensor, sum_LB1: Tensor) -> tuple[Tensor, Tensor]:
    # Where the kernel is not 0 logits are near 0, so that squares lose no digits.
    first_LBB, sum_LB = kernel_LBB * logits_LBB, sum_LB1.squeeze(2)
    mean_LB = first_LBB.sum(dim=2) / sum_LB
    return mean_LB, first_LBB.mul_(logits_LBB).sum(dim=2) / sum_LB - mean_LB.square()


def loss_of_distances(distances_LBB: Tensor, neighbours: Neighbours, temperature_L: Tensor) -> Tensor:
    """The losses `[L]`, differentiable once in distances and temperatures; 0 where no row has a partner."""
    if distances_LBB.shape[1] < 2:
        return (distances_LBB * 0).sum(dim=(1, 2)) + temperature_L.nan_to_num() * 0
    return _Snnl.apply(distances_LBB, known(temperature_L, neighbours), neighbours)  # type: ignore[no-untyped-call]


def known(temperature_L: Tensor, neighbours: Neighbours) -> Tensor:
    """The temperatures; 1 where no row has a partner: none may be known yet, and the loss is 0 at any."""
    return torch.where(neighbours.num_valid > 0, temperature_L, 1.0)


class _Snnl(torch.autograd.Function):
    """Keeps one `[L, B, B]` tensor, which is the gradient up to a factor."""

    @staticmethod
    def forward(ctx: Any, distances_LBB: Tensor, temperature_L: Tensor, neighbours: Neighbours) -> Tensor:
        kernel = Kernel.of(distances_LBB, neighbours, temperature_L)
        loss_L, weight_LBB = kernel.loss(), kernel.weights()
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
