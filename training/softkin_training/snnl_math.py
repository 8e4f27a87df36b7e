"""The soft nearest neighbor loss as a function of distances and temperature, and its derivatives.

Shapes: B rows of a batch. `same` = of the same class and not the row itself.

    l(T)     = -mean_i log( sum_same exp(-d_ij / T) / sum_others exp(-d_ik / T) )      (Frosst et al. 2019, eq. 1)
    d l / d log T = sum_ik W_ik e_ik                     with e = d / T and W_ik = (p_all - p_same)_ik / #valid rows
    d2l / d log T2 = mean_i(Var_all e - Var_same e) - d l / d log T
    d l / d d_ik = -W_ik / T
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HIDDEN = -1e30
"""Added to the logit of a row's distance to itself; finite, or products with its kernel of 0 would be NaN."""
SMALLEST_SUM = 1e-25
"""Below it the same-class part of a float32 sum may have lost terms to underflow."""


@dataclass(frozen=True)
class Neighbours:
    """What the labels of a batch say, shared by all layers."""

    itself: Tensor
    """float32 `[B, B]`, HIDDEN on the diagonal, else 0."""
    same: Tensor
    """float32 `[B, B]`, 1 for pairs of one class, else 0; 0 on the diagonal. The row of an invalid row has 1 for all
    others: its loss and its weights become exactly 0, without a special case anywhere."""
    num_valid: int
    """Rows with a partner of their class; only they count."""

    @staticmethod
    def of(y: Tensor) -> Neighbours:
        """Read the labels `[B]`."""
        itself_BB = torch.zeros(len(y), len(y), device=y.device).fill_diagonal_(HIDDEN)
        same_BB = y.unsqueeze(0) == y.unsqueeze(1)
        valid_B = same_BB.sum(dim=1) > 1
        same_BB |= ~valid_B.unsqueeze(1)
        return Neighbours(itself_BB, same_BB.to(itself_BB.dtype).fill_diagonal_(0), int(valid_B.sum()))


class _Kernel(NamedTuple):
    """exp(-d / T), each row relative to its nearest neighbour."""

    logits: Tensor
    """`[B, B]`, at most 0."""
    all: Tensor
    """`[B, B]`, exp(logits); 0 on the diagonal."""
    total: Tensor
    """`[B, 1]`, its sums."""
    same: Tensor
    """`[B, B]`, exp(logits - lead) for pairs of one class, else 0."""
    own: Tensor
    """`[B, 1]`, its sums."""
    lead: Tensor | None
    """`[B, 1]`, largest logit of the class where exp(logits) alone would underflow; else None, for 0."""

    def loss(self, num_valid: int) -> Tensor:
        terms_B1 = self.total.log() - self.own.log()
        return (terms_B1 if self.lead is None else terms_B1 - self.lead).sum() / num_valid


def _kernel(distances_BB: Tensor, neighbours: Neighbours, temperature: Tensor) -> _Kernel:
    logits_BB = (distances_BB / -temperature).add_(neighbours.itself)
    logits_BB -= logits_BB.amax(dim=1, keepdim=True)
    # exp takes ten times as long where it underflows, which it does for most pairs at low temperature.
    floored_BB = logits_BB.clamp_min(math.log(torch.finfo(logits_BB.dtype).tiny) + 1)
    all_BB = floored_BB.exp().fill_diagonal_(0)
    same_BB = all_BB * neighbours.same
    own_B1 = same_BB.sum(dim=1, keepdim=True)
    if bool(own_B1.min() > SMALLEST_SUM):
        return _Kernel(floored_BB, all_BB, all_BB.sum(dim=1, keepdim=True), same_BB, own_B1, None)
    all_BB = logits_BB.exp()
    apart_BB = logits_BB.masked_fill(neighbours.same == 0, -math.inf)
    lead_B1 = apart_BB.amax(dim=1, keepdim=True)
    same_BB = (apart_BB - lead_B1).exp_()
    total_B1, own_B1 = all_BB.sum(dim=1, keepdim=True), same_BB.sum(dim=1, keepdim=True)
    return _Kernel(logits_BB, all_BB, total_B1, same_BB, own_B1, lead_B1)


class Softmaxes(NamedTuple):
    """The loss, and the probabilities behind it."""

    loss: Tensor
    """Scalar, the mean over valid rows."""
    p_all: Tensor
    """`[B, B]`, of picking a neighbour among all others; 0 on the diagonal."""
    p_same: Tensor
    """`[B, B]`, of picking it among the same class; equals `p_all` for invalid rows."""


def softmaxes(distances_BB: Tensor, neighbours: Neighbours, temperature: Tensor) -> Softmaxes:
    """The loss at a temperature; `neighbours` must have a valid row."""
    k = _kernel(distances_BB, neighbours, temperature)
    loss = k.loss(neighbours.num_valid)
    return Softmaxes(loss, k.all.div_(k.total), k.same.div_(k.own))


class Derivatives(NamedTuple):
    """The loss and its derivatives in log T, scalars."""

    loss: Tensor
    slope: Tensor
    curvature: Tensor


def derivatives(distances_BB: Tensor, neighbours: Neighbours, temperature: Tensor) -> Derivatives:
    """How the loss changes with temperature; `neighbours` must have a valid row."""
    k = _kernel(distances_BB, neighbours, temperature)

    def moments(kernel_BB: Tensor, logits_BB: Tensor, sum_B1: Tensor) -> tuple[Tensor, Tensor]:
        # Where the kernel is not 0 logits are near 0, so that squares lose no digits.
        first_BB = kernel_BB * logits_BB
        mean_B = first_BB.sum(dim=1) / sum_B1.squeeze(1)
        return mean_B, first_BB.mul_(logits_BB).sum(dim=1) / sum_B1.squeeze(1) - mean_B.square()

    mean_all_B, var_all_B = moments(k.all, k.logits, k.total)
    mean_same_B, var_same_B = moments(k.same, k.logits if k.lead is None else k.logits - k.lead, k.own)
    if k.lead is not None:
        mean_same_B = mean_same_B + k.lead.squeeze(1)
    slope = (mean_same_B - mean_all_B).sum() / neighbours.num_valid  # logits are -e but for a constant
    curvature = (var_all_B - var_same_B).sum() / neighbours.num_valid - slope
    return Derivatives(k.loss(neighbours.num_valid), slope, curvature)


def loss_of_distances(distances_BB: Tensor, neighbours: Neighbours, temperature: Tensor) -> Tensor:
    """The loss, differentiable once in the distances and in the scalar temperature; 0 where no row has a partner."""
    if neighbours.num_valid == 0:
        # Not yet known where no batch had a partner so far; NaN times 0 would be NaN.
        return (distances_BB * 0).sum() + temperature.nan_to_num() * 0
    return _Snnl.apply(distances_BB, temperature, neighbours)  # type: ignore[no-untyped-call]


class _Snnl(torch.autograd.Function):
    """Keeps one `[B, B]` matrix, which is the gradient up to a factor."""

    @staticmethod
    def forward(ctx: Any, distances_BB: Tensor, temperature: Tensor, neighbours: Neighbours) -> Tensor:
        loss, weight_BB, same_BB = softmaxes(distances_BB, neighbours, temperature)
        weight_BB -= same_BB
        slope = (weight_BB * distances_BB).sum() / neighbours.num_valid / temperature.square()  # dl/dT
        ctx.save_for_backward(weight_BB, temperature, slope)
        ctx.num_valid = neighbours.num_valid
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight_BB, temperature, slope = ctx.saved_tensors
        return weight_BB * (grad / temperature / -ctx.num_valid), grad * slope, None
