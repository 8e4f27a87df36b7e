"""The loss as its authors published it in code, for faithful repetition: the temperature mode `learned`.

    f_ik = exp(-d_ik / T) for i != k, f_ii = 0
    p_ik = f_ik / (eps + sum_k f_ik)
    l(T) = -mean_i log(eps + sum over k of the class of i of p_ik)                   eps = 1e-5, mean over all rows
    T    = T0 / t,  t starting at 1 for each layer;   t <- t - step * dl(T0 / t)/dt  once per batch, before the loss

then the loss is taken at the new T, which is a constant for backprop. From `SNNLCrossEntropy` in the authors' code
(cleverhans, `loss.py`, 2019); T0 = 100 and step = 0.1 there. Frosst, Papernot & Hinton 2019 print eq. 1 without eps.

Why it is not the default. All of these are in the equations, and repeated here on purpose:

* eps: where distances are large beside T, f underflows eps: p -> 0, l -> -log eps = 11.51 whatever the labels, and the
  gradient vanishes. Maximising l (entangling) reaches this value by merely scaling activations up.
* a row without a partner in the batch adds a constant 11.51 to the mean.
* one step of 0.1 on t per batch follows slowly (100 batches to come from T = 100 to 24 where 11.5 is best), or not at
  all where T0 is far below the distances. Then T is not at the minimum, and holding it constant in backprop is only an
  approximation. Nothing keeps t from crossing 0: T runs to infinity, then turns negative, where far rows count as near
  ones and f overflows; training then stops with the error for a loss that is not finite.
* cosine distances lie in [0, 2]: at T0 = 100 every f is nearly 1, l stays at chance and the gradient is nearly 0.

One fault is not repeated, because it is of the arithmetic: their f_ii = exp(-d_ii / T) - 1 with d_ii from rounding can
make row sums negative and l NaN. Here d_ii is 0 and no d is negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5


def published_loss(distances_BB: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
    """The loss `l(T)` of the equations above, differentiable in distances `[B, B]` and temperature."""
    itself_BB = torch.eye(len(y), dtype=torch.bool, device=y.device)
    kernel_BB = torch.exp(-distances_BB / temperature).masked_fill(itself_BB, 0.0)
    pick_BB = kernel_BB / (EPS + kernel_BB.sum(dim=1, keepdim=True))
    same_BB = (y.unsqueeze(0) == y.unsqueeze(1)).to(pick_BB.dtype)
    return -torch.log(EPS + (pick_BB * same_BB).sum(dim=1)).mean()


def step_inverse(distances_BB: Tensor, y: Tensor, t: Tensor, *, initial_temperature: float, step: float) -> Tensor:
    """`t` after one gradient step of `step` on the loss at T = initial_temperature / t."""
    with torch.enable_grad():
        t = t.detach().to(distances_BB.dtype).requires_grad_()
        loss = published_loss(distances_BB.detach(), y, initial_temperature / t)
        (slope,) = torch.autograd.grad(loss, t)
    return (t - step * slope).detach()
