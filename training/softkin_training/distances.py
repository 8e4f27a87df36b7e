"""Distances between the rows of one batch, with a gradient that costs one matrix product.

Shapes: L layers, B rows, D activations of a row. Everything is computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from softkin.errors import InvalidInputError
from softkin.mass import METRICS, Metric

ROW_BLOCKS, WIDE, COLUMNS = 4, 1024, 512
"""How products over rows wider than WIDE are cut on a CPU, as measured: benchmarks/snnl_step.py. On a GPU no block of
columns is narrower than COLUMNS."""


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
    """Distances `[B, B]` between the rows of one layer; see `stacked_distances`."""
    return stacked_distances([rows_BD], metric)[0]


def stacked_distances(rows: Sequence[Tensor], metric: Metric) -> Tensor:
    """Distances `[L, B, B]` between rows, at least 0 and exactly 0 on the diagonal; differentiable once.

    They come from products of the rows less their mean: without that a common offset, which layers behind a ReLU have,
    would eat the digits of the differences.

    Args:
        rows: of L >= 1 layers, `[B, D]` with a D for each; float32 or float64.
        metric: `squared_euclidean`: ||a - b||^2; `cosine`: 1 - cos(a, b), where a row of zeros has distance 1 from
            every other and gets no gradient.

    Raises:
        InvalidInputError: an unknown metric.
    """
    if metric not in METRICS:
        raise InvalidInputError("metric", f"is {metric!r}; allowed: {METRICS}")
    with torch.autocast(rows[0].device.type, enabled=False):
        return _Distances.apply(metric == "cosine", *rows)  # type: ignore[no-untyped-call]


class _Distances(torch.autograd.Function):
    """Wide rows are read and written as rarely as it goes: all scaling happens on `[L, B, B]`."""

    @staticmethod
    def forward(ctx: Any, cosine: bool, *rows: Tensor) -> Tensor:
        num_rows = len(rows[0])
        inverse_LB, kept = None, []
        if cosine:
            norm_LB = torch.stack([torch.linalg.vector_norm(r, dim=1) for r in rows])
            zero_LB = norm_LB <= torch.finfo(norm_LB.dtype).tiny
            inverse_LB = norm_LB.masked_fill_(zero_LB, 1.0).reciprocal_().masked_fill_(zero_LB, 0.0)
            for rows_BD, inverse_B, share_B in zip(rows, inverse_LB, inverse_LB / -num_rows, strict=True):
                layer = rows_BD.new_empty(num_rows + 1, rows_BD.shape[1])
                # Less the mean, as one more row: backward needs it as such.
                torch.mv(rows_BD.T, share_B, out=layer[-1])
                torch.addcmul(layer[-1], rows_BD, inverse_B.unsqueeze(1), out=layer[:-1])
                kept.append(layer)
        else:
            kept = [rows_BD - rows_BD.mean(dim=0) for rows_BD in rows]
        distances_LBB = torch.stack([_gram(layer[:num_rows]) for layer in kept])
        square_LB = distances_LBB.diagonal(dim1=1, dim2=2).clone()
        if cosine:  # 1 - cos = ||u - v||^2 / 2 for unit rows u and v; 0 + 1 for a row of zeros
            square_LB += zero_LB
            square_LB, distances_LBB = square_LB.mul_(0.5), distances_LBB.neg_()
        else:
            distances_LBB *= -2
        distances_LBB.add_(square_LB.unsqueeze(1)).add_(square_LB.unsqueeze(2)).clamp_min_(0)
        distances_LBB.diagonal(dim1=1, dim2=2).zero_()
        ctx.save_for_backward(inverse_LB, distances_LBB, *kept)
        return distances_LBB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LBB: Tensor) -> tuple[Tensor | None, ...]:
        inverse_LB, distances_LBB, *kept = ctx.saved_tensors
        with torch.autocast(grad_LBB.device.type, enabled=False):
            weights = grad_LBB + grad_LBB.mT
            if inverse_LB is None:  # sum over k of pull_ik * 2 (z_i - z_k)
                weights *= -2
                weights.diagonal(dim1=1, dim2=2).sub_(weights.sum(dim=2))
            else:  # sum over k of pull_ik ((u_i - u_k) - d_ik u_i) / |z_i|, with u = row of `kept` + mean
                along_LB = (weights * distances_LBB).sum(dim=2)
                weights.neg_()
                weights.diagonal(dim1=1, dim2=2).sub_(weights.sum(dim=2) + along_LB)
                weights = torch.cat([weights, along_LB.unsqueeze(2)], dim=2).mul_(inverse_LB.unsqueeze(2))
            return None, *(_combine(w, layer) for w, layer in zip(weights, kept, strict=True))


def _gram(rows_BD: Tensor) -> Tensor:
    """All products of rows. BLAS would compute both triangles: on a CPU, wide rows are worth cutting into blocks."""
    num_rows, width = rows_BD.shape
    if rows_BD.device.type != "cpu":
        return _split_gram(rows_BD)
    if width < WIDE or num_rows < 16 * ROW_BLOCKS:
        return rows_BD @ rows_BD.T
    products_BB = rows_BD.new_empty(num_rows, num_rows)
    size = -(-num_rows // ROW_BLOCKS)
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        torch.mm(rows_BD[start:stop], rows_BD[start:].T, out=products_BB[start:stop, start:])
        products_BB[stop:, start:stop] = products_BB[start:stop, stop:].T
    return products_BB


def _split_gram(rows_BD: Tensor) -> Tensor:
    """The same as a sum over blocks of columns: a GPU works on all of them at once, and a `[B, B]` product is small."""
    num_rows, width = rows_BD.shape
    blocks = next((n for n in (64, 32, 16, 8, 4, 2) if width % n == 0 and width // n >= COLUMNS), 1)
    blocks_SBD = rows_BD.view(num_rows, blocks, width // blocks).transpose(0, 1)
    return (blocks_SBD @ blocks_SBD.mT).sum(dim=0)


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
