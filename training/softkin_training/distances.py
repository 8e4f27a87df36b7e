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
"""Rows of WIDE numbers or more are multiplied in ROW_BLOCKS blocks of rows on a CPU, and combined in blocks of COLUMNS
columns; measured by benchmarks/snnl_step.py. On a GPU no block of columns is narrower than COLUMNS."""

ALIGNED = 4
"""A GPU's tensor cores need rows that begin a multiple of so many numbers apart."""


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


def check_metric(metric: Metric) -> Metric:
    """The metric as it is, if it is a known one.

    Raises:
        InvalidInputError: it is not; lists those that are.
    """
    if metric not in METRICS:
        raise InvalidInputError("metric", f"is {metric!r}; allowed: {METRICS}")
    return metric


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
    cosine = check_metric(metric) == "cosine"
    with torch.autocast(rows_BD.device.type, enabled=False):
        return _Distances.apply(rows_BD, cosine)  # type: ignore[no-untyped-call]


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, cosine: bool) -> Tensor:
        (layer,), inverse_norm_LB = centred_rows([rows_BD], cosine)
        distances_LBB = distances_of_products(products_of([layer], len(rows_BD)), inverse_norm_LB)
        ctx.save_for_backward(inverse_norm_LB, distances_LBB, layer)
        return distances_LBB[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BB: Tensor) -> tuple[Tensor, None]:
        inverse_norm_LB, distances_LBB, layer = ctx.saved_tensors
        with torch.autocast(grad_BB.device.type, enabled=False):
            weights = row_weights(grad_BB.unsqueeze(0), distances_LBB, inverse_norm_LB)
            return gradients_of_rows(weights, [layer])[0], None


# Distances and their gradients, in steps that read and write wide rows as rarely as possible: all scaling happens on
# [L, B, B].


def centred_rows(rows: Sequence[Tensor], cosine: bool) -> tuple[list[Tensor], Tensor | None]:
    """The rows of each layer less their mean, `[B, D]`; for cosine those of unit norm, and the inverse norms `[L, B]`.

    For cosine each layer has more rows: the mean, which the gradient needs, and zeros up to a multiple of `ALIGNED`.
    The inverse norm of a row of zeros is 0.
    """
    num_rows, layers = len(rows[0]), []
    if not cosine:
        share_B = rows[0].new_full((num_rows,), 1 / max(1, num_rows))  # rows.mean(0) takes a CPU three times as long
        return [rows_BD - torch.mv(rows_BD.T, share_B) for rows_BD in rows], None
    norm_LB = torch.stack([torch.linalg.vector_norm(r, dim=1) for r in rows])
    smallest = torch.finfo(norm_LB.dtype).tiny
    inverse_norm_LB = (norm_LB > smallest) / norm_LB.clamp_min(smallest)
    for rows_BD, inverse_norm_B, share_B in zip(rows, inverse_norm_LB, inverse_norm_LB / -num_rows, strict=True):
        layer = rows_BD.new_empty(_padded(num_rows), rows_BD.shape[1])
        layer[num_rows + 1 :].zero_()
        torch.mv(rows_BD.T, share_B, out=layer[num_rows])
        torch.addcmul(layer[num_rows], rows_BD, inverse_norm_B.unsqueeze(1), out=layer[:num_rows])
        layers.append(layer)
    return layers, inverse_norm_LB


def products_of(layers: Sequence[Tensor], num_rows: int) -> Tensor:
    """Inner products `[L, B, B]` of the first `num_rows` rows of each layer."""
    products_LBB = layers[0].new_empty(len(layers), num_rows, num_rows)
    for layer, products_BB in zip(layers, products_LBB, strict=True):
        _gram(layer[:num_rows], products_BB)
    return products_LBB


def distances_of_products(products_LBB: Tensor, inverse_norm_LB: Tensor | None) -> Tensor:
    """Distances `[L, B, B]` from inner products of centred rows.

    Args:
        products_LBB: see `products_of`.
        inverse_norm_LB: see `centred_rows`; None for squared Euclidean distances, otherwise they are cosine ones.
    """
    squared_norm_LB, factor = products_LBB.diagonal(dim1=1, dim2=2), 2
    if inverse_norm_LB is not None:  # 1 - cos = ||u - v||^2 / 2 for unit rows u and v; 0 + 1 for a row of zeros
        squared_norm_LB, factor = (squared_norm_LB + (inverse_norm_LB == 0)) * 0.5, 1
    distances_LBB = squared_norm_LB.unsqueeze(1) + squared_norm_LB.unsqueeze(2)
    distances_LBB.sub_(products_LBB, alpha=factor).clamp_min_(0)
    distances_LBB.diagonal(dim1=1, dim2=2).zero_()
    return distances_LBB


def row_weights(grad_LBB: Tensor, distances_LBB: Tensor, inverse_norm_LB: Tensor | None) -> Tensor:
    """Weights `[L, B, rows of the layer]` with which a layer's rows add up to the gradient of each row.

    Args:
        grad_LBB: the gradient of the distances.
        distances_LBB: the distances.
        inverse_norm_LB: see `centred_rows`.
    """
    num_rows = grad_LBB.shape[2]
    if inverse_norm_LB is None:  # sum over k of g_ik * 2 (z_i - z_k), with g = grad + its transpose
        weights = grad_LBB + grad_LBB.mT
        weights *= -2
        weights.diagonal(dim1=1, dim2=2).sub_(weights.sum(dim=2))
        return weights
    # sum over k of g_ik ((u_i - u_k) - d_ik u_i) / |z_i|, with g as above and u = centred row + mean
    weights = grad_LBB.new_zeros(*grad_LBB.shape[:2], _padded(num_rows))
    of_rows_LBB = weights[:, :, :num_rows]
    torch.add(grad_LBB, grad_LBB.mT, out=of_rows_LBB)
    along_LB = (of_rows_LBB * distances_LBB).sum(dim=2)
    of_rows_LBB.diagonal(dim1=1, dim2=2).sub_(of_rows_LBB.sum(dim=2) - along_LB)
    weights[:, :, num_rows] = -along_LB
    return weights.mul_(-inverse_norm_LB.unsqueeze(2))


def gradients_of_rows(weights: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients `[B, D]` of the rows of each layer."""
    return tuple(_combine(w, layer) for w, layer in zip(weights, layers, strict=True))


def _padded(num_rows: int) -> int:
    """How many rows a layer has for cosine: with their mean, and with zeros up to a multiple of `ALIGNED`."""
    return -(-(num_rows + 1) // ALIGNED) * ALIGNED


def _gram(rows_BD: Tensor, out: Tensor) -> None:
    """All inner products of rows. BLAS would compute both triangles; blocks of wide rows save one of them on a CPU."""
    num_rows, width = rows_BD.shape
    if rows_BD.device.type != "cpu":
        _split_gram(rows_BD, out)
    elif width < WIDE or num_rows < 16 * ROW_BLOCKS:
        torch.mm(rows_BD, rows_BD.T, out=out)
    else:
        size = -(-num_rows // ROW_BLOCKS)
        for start in range(0, num_rows, size):
            stop = start + size
            torch.mm(rows_BD[start:], rows_BD[start:stop].T, out=out[start:, start:stop])
            out[start:stop, stop:] = out[stop:, start:stop].T


def _split_gram(rows_BD: Tensor, out: Tensor) -> None:
    """The same as a sum over blocks of columns: one `[B, B]` product is too small to keep a GPU busy."""
    num_rows, width = rows_BD.shape
    blocks = next((n for n in (64, 32, 16, 8, 4, 2) if width % n == 0 and width // n >= COLUMNS), 1)
    blocks_SBD = rows_BD.view(num_rows, blocks, width // blocks).transpose(0, 1)
    torch.sum(blocks_SBD @ blocks_SBD.mT, dim=0, out=out)


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
