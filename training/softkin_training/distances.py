"""Distances between the rows of one batch, with a gradient that costs one matrix product.

Shapes: B rows, D activations of a row. Everything is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from softkin.errors import InvalidInputError
from softkin.mass import METRICS, Metric

ROW_BLOCKS, WIDE, COLUMNS = 4, 1024, 512
"""How products over rows wider than WIDE are cut on a CPU, as measured: benchmarks/snnl_step.py."""


def flat_rows(z: Tensor, y: Tensor) -> Tensor:
    """Activations `[B, ...]` as rows `[B, D]`, float32 at least; the order of features is memory's.

    Raises:
        InvalidInputError: `z` and the labels `y` do not fit each other.
    """
    if y.ndim != 1 or z.ndim < 2 or len(z) != len(y):
        shapes = f"are {tuple(z.shape)} and {tuple(y.shape)}"
        raise InvalidInputError("z, y", f"{shapes}; they must be [B, ...] activations and [B] labels")
    if z.ndim == 4 and z.is_contiguous(memory_format=torch.channels_last):
        z = z.permute(0, 2, 3, 1)  # distances ignore the order of features: take memory's, and save a copy
    return z.flatten(1).to(torch.promote_types(z.dtype, torch.float32))


def pairwise_distances(rows_BD: Tensor, metric: Metric) -> Tensor:
    """Distances `[B, B]` between rows, at least 0 and exactly 0 on the diagonal; differentiable once.

    They come from products of the rows less their mean: without that a common offset, which layers behind a ReLU have,
    would eat the digits of the differences.

    Args:
        rows_BD: float32 or float64.
        metric: `squared_euclidean`: ||a - b||^2; `cosine`: 1 - cos(a, b), where a row of zeros has distance 1 from
            every other and gets no gradient.

    Raises:
        InvalidInputError: an unknown metric.
    """
    if metric not in METRICS:
        raise InvalidInputError("metric", f"is {metric!r}; allowed: {METRICS}")
    with torch.autocast(rows_BD.device.type, enabled=False):
        return _Distances.apply(rows_BD, metric == "cosine")  # type: ignore[no-untyped-call]


class _Distances(torch.autograd.Function):
    """Wide rows are read and written as rarely as it goes: all scaling happens on `[B, B]`."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, cosine: bool) -> Tensor:
        num_rows, width = rows_BD.shape
        if cosine:
            norm_B = torch.linalg.vector_norm(rows_BD, dim=1)
            zero_B = norm_B <= torch.finfo(rows_BD.dtype).tiny
            inverse_B = norm_B.masked_fill(zero_B, 1.0).reciprocal().masked_fill(zero_B, 0.0)
            mean_D = inverse_B @ rows_BD / num_rows
            kept = rows_BD.new_empty(num_rows + 1, width)  # the mean as one more row: backward needs it as such
            kept[-1] = mean_D
            centred_BD = torch.addcmul(-mean_D, rows_BD, inverse_B.unsqueeze(1), out=kept[:-1])
        else:
            inverse_B = None
            kept = centred_BD = rows_BD - rows_BD.mean(dim=0)
        distances_BB = _gram(centred_BD)
        square_B = distances_BB.diagonal().clone()
        if cosine:  # 1 - cos = ||u - v||^2 / 2 for unit rows u and v; 0 + 1 for a row of zeros
            square_B += zero_B
            square_B, distances_BB = square_B.mul_(0.5), distances_BB.neg_()
        else:
            distances_BB *= -2
        distances_BB.add_(square_B).add_(square_B.unsqueeze(1)).clamp_min_(0).fill_diagonal_(0)
        ctx.save_for_backward(kept, inverse_B, distances_BB)
        return distances_BB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BB: Tensor) -> tuple[Tensor, None]:
        kept, inverse_B, distances_BB = ctx.saved_tensors
        with torch.autocast(kept.device.type, enabled=False):
            pull_BB = grad_BB + grad_BB.T
            if inverse_B is None:  # sum over k of pull_ik * 2 (z_i - z_k)
                weights_BB = pull_BB.mul_(-2)
                weights_BB.diagonal().sub_(weights_BB.sum(dim=1))
                return _combine(weights_BB, kept), None
            # sum over k of pull_ik ((u_i - u_k) - d_ik u_i) / |z_i|, with u = row of `kept` + mean
            along_B = (pull_BB * distances_BB).sum(dim=1)
            weights_BB = pull_BB.neg_()
            weights_BB.diagonal().sub_(weights_BB.sum(dim=1) + along_B)
            weights = torch.cat([weights_BB, -along_B.unsqueeze(1)], dim=1).mul_(inverse_B.unsqueeze(1))
            return _combine(weights, kept), None


def _gram(rows_BD: Tensor) -> Tensor:
    """All products of rows. BLAS would compute both triangles: on a CPU, wide rows are worth cutting into blocks."""
    num_rows, width = rows_BD.shape
    if rows_BD.device.type != "cpu" or width < WIDE or num_rows < 16 * ROW_BLOCKS:
        return rows_BD @ rows_BD.T
    products_BB = rows_BD.new_empty(num_rows, num_rows)
    size = -(-num_rows // ROW_BLOCKS)
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        torch.mm(rows_BD[start:stop], rows_BD[start:].T, out=products_BB[start:stop, start:])
        products_BB[stop:, start:stop] = products_BB[start:stop, stop:].T
    return products_BB


def _combine(weights: Tensor, rows: Tensor) -> Tensor:
    """`weights @ rows`, on a CPU in blocks of columns that stay in the cache."""
    width = rows.shape[1]
    if rows.device.type != "cpu" or width < WIDE:
        return weights @ rows
    combined = rows.new_empty(len(weights), width)
    for start in range(0, width, COLUMNS):
        columns = slice(start, start + COLUMNS)
        torch.mm(weights, rows[:, columns], out=combined[:, columns])
    return combined
