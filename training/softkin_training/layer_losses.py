"""The soft nearest neighbor losses of several layers of a batch, from rows to gradients in one step.

Shapes: L layers, B rows of a batch, D activations of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from softkin_training.distances import (
    centred_rows,
    distances_of_products,
    gradients_of_rows,
    products_of,
    row_weights,
)
from softkin_training.snnl_math import Neighbours, loss_and_weights
from softkin_training.snnl_temperature import follow


class LossesAndWeights(NamedTuple):
    """The losses of a batch, and what their gradients are made of."""

    loss: Tensor
    """`[L]`."""
    temperature: Tensor
    """`[L]`, the temperatures at which the losses were taken."""
    weights: Tensor
    """`[L, B, rows]`, with which a layer's rows add up to the gradient; see `distances.row_weights`."""


def losses_and_weights(
    products_LBB: Tensor,
    inverse_norm_LB: Tensor | None,
    temperature_L: Tensor,
    y: Tensor,
    *,
    newton_steps: int,
) -> LossesAndWeights:
    """Losses and weights of gradients from the inner products of rows; T is a constant in the gradient.

    Never waits for a GPU.

    Args:
        products_LBB: see `distances.products_of`.
        inverse_norm_LB: see `distances.centred_rows`.
        temperature_L: > 0, the temperatures of the last batch.
        y: `[B]` integer labels.
        newton_steps: how many steps the temperatures move towards the minimisers of this batch before the losses are
            taken; see `snnl_temperature.follow`.
    """
    neighbours = Neighbours.of(y)
    distances_LBB = distances_of_products(products_LBB, inverse_norm_LB)
    if newton_steps:
        temperature_L = follow(distances_LBB, neighbours, temperature_L, newton_steps)
    factor_L = temperature_L.to(distances_LBB.dtype)
    loss_L, weights_LBB = loss_and_weights(distances_LBB, neighbours, factor_L)
    grad_LBB = weights_LBB.div_((factor_L * -neighbours.divisor)[:, None, None])
    return LossesAndWeights(loss_L, temperature_L, row_weights(grad_LBB, distances_LBB, inverse_norm_LB))


def layer_losses(
    rows: Sequence[Tensor], cosine: bool, of_products: Callable[[Tensor, Tensor | None], LossesAndWeights]
) -> Tensor:
    """Losses `[L]` of layers, differentiable once in the rows.

    Args:
        rows: of L >= 1 layers, `[B, D]` with a D for each; float32 or float64, where one is float64 all are taken so.
        cosine: the metric; else squared Euclidean.
        of_products: makes losses and weights of products and inverse norms, see `losses_and_weights`; called once.
    """
    dtype = reduce(torch.promote_types, (r.dtype for r in rows))
    return _LayerLosses.apply(cosine, of_products, *(r.to(dtype) for r in rows))  # type: ignore[no-untyped-call]


class _LayerLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cosine: bool, of_products: Callable[[Tensor, Tensor | None], LossesAndWeights], *rows: Tensor
    ) -> Tensor:
        with torch.autocast(rows[0].device.type, enabled=False):
            layers, inverse_norm_LB = centred_rows(rows, cosine)
            loss_L, _, weights = of_products(products_of(layers, len(rows[0])), inverse_norm_LB)
        ctx.save_for_backward(weights, *layers)
        return loss_L

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_L: Tensor) -> tuple[Tensor | None, ...]:
        weights, *layers = ctx.saved_tensors
        with torch.autocast(grad_L.device.type, enabled=False):
            return None, None, *gradients_of_rows(weights * grad_L[:, None, None], layers)
