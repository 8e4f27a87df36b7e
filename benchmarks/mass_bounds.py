"""Bounds on the log mass of groups of bank rows, for the study of partial scoring; proofs: docs/decisions/0010."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TILE = 64


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Unit rows `[N, D]` sorted by class, in tiles of at most `TILE` rows that never straddle a class."""

    rows: Floats
    tiles: NDArray[np.int64]
    """`[G + 1]` where tiles begin, and N."""
    classes: NDArray[np.int64]
    """`[C + 1]` where classes begin, and N."""
    temperature: float

    @cached_property
    def means(self) -> Floats:
        """`[G, D]` mean row of each tile."""
        return np.add.reduceat(self.rows, self.tiles[:-1]) / np.diff(self.tiles)[:, None]

    @cached_property
    def offsets(self) -> Floats:
        """`[N, D]` rows less the mean of their tile."""
        return self.rows - np.repeat(self.means, np.diff(self.tiles), axis=0)

    @cached_property
    def spreads(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Per tile: radius, spectral norm of the covariance; mean, mean less minimum and deviation of |offset|^2/2."""
        half = np.square(self.offsets).sum(axis=1) / 2
        parts = [slice(*pair) for pair in pairwise(self.tiles)]
        spectral = [np.linalg.eigvalsh(o @ o.T)[-1] / len(o) for o in (self.offsets[p] for p in parts)]
        mean, least, deviation = (np.array([f(half[p]) for p in parts]) for f in (np.mean, np.min, np.std))
        radius = np.sqrt(2 * np.maximum.reduceat(half, self.tiles[:-1]))
        return radius, np.array(spectral), mean, mean - least, deviation

    @cached_property
    def directions(self) -> Floats:
        """`[D, D]` principal directions within classes, widest first."""
        sizes = np.diff(self.classes)
        means = np.add.reduceat(self.rows, self.classes[:-1]) / sizes[:, None]
        within = self.rows - np.repeat(means, sizes, axis=0)
        return np.linalg.eigh(within.T @ within)[1][:, ::-1]


# A bound: layer, queries [B, D], temperature -> lower and upper log mass of each group [B, G], where groups begin [G].
Bound = Callable[[Layer, Floats, float], tuple[Floats, Floats, NDArray[np.int64]]]
Order = Callable[[Floats], NDArray[np.int64]]


def exact(layer: Layer, z: Floats, t: float) -> Floats:
    """`[B, N]` log mass of every row."""
    return (z @ layer.rows.T - 1) / t


def oracle(layer: Layer, z: Floats, t: float, *, tiles: bool) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """No bound: knows every mass and leaves out the smallest. A truncation that is proven cannot do better."""
    starts = layer.tiles[:-1] if tiles else np.arange(len(layer.rows))
    a = sum_groups(exact(layer, z, t), np.append(starts, len(layer.rows)))
    return np.full_like(a, -np.inf), a, starts


def sum_groups(a: Floats, starts: NDArray[np.int64]) -> Floats:
    """`[B, G]` log mass of groups of neighbouring rows that begin at `starts[:-1]`."""
    top = np.maximum.reduceat(a, starts[:-1], axis=1)
    return np.log(np.add.reduceat(np.exp(a - np.repeat(top, np.diff(starts), axis=1)), starts[:-1], axis=1)) + top


def _to_means(layer: Layer, z: Floats) -> Floats:
    squared = 1 - 2 * z @ layer.means.T + np.square(layer.means).sum(axis=1)
    return np.sqrt(np.maximum(squared, 0))


def summaries(layer: Layer, z: Floats, t: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Jensen from below; from above the tile's ball, or Bennett for its mean, variance and maximum, if that is less."""
    radius, spectral, half, below, deviation = layer.spreads
    far, count = _to_means(layer, z), np.log(np.diff(layer.tiles))
    lower = count - (far**2 / 2 + half) / t
    ball = count - np.square(np.maximum(far - radius, 0)) / (2 * t)
    top = np.maximum((far * radius + below) / t, 1e-12)
    variance = np.maximum(np.square((far * np.sqrt(spectral) + deviation) / t), 1e-300)
    peak = np.logaddexp(2 * np.log(top) - variance / top, np.log(variance) + top) - np.log(top**2 + variance)
    return lower, np.minimum(ball, lower + peak), layer.tiles[:-1]


def projection(layer: Layer, z: Floats, t: float, *, share: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Exact distance in that share of the directions; of the rest only its distance to the tile's mean."""
    v = layer.directions[:, : round(share * layer.rows.shape[1])]
    sizes = np.diff(layer.tiles)
    offsets_v = layer.offsets @ v
    rest = np.sqrt(np.maximum(np.square(layer.offsets).sum(axis=1) - np.square(offsets_v).sum(axis=1), 0))
    means_v, zv, rows_v = layer.means @ v, z @ v, layer.rows @ v
    within = np.square(zv[:, None] - means_v[None]).sum(axis=2)
    far = np.repeat(np.sqrt(np.maximum(_to_means(layer, z) ** 2 - within, 0)), sizes, axis=1)
    near = np.square(zv).sum(axis=1)[:, None] - 2 * zv @ rows_v.T + np.square(rows_v).sum(axis=1)
    lower, upper = ((near + np.square(r)) / (-2 * t) for r in (far + rest, far - rest))
    return lower, upper, np.arange(len(layer.rows))


def eight_bits(layer: Layer, z: Floats, t: float) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Product with the int8 rows; what rounding lost is at most its norm."""
    step = np.abs(layer.rows).max(axis=1, keepdims=True) / 127
    rounded = np.round(layer.rows / step) * step
    a, lost = (z @ rounded.T - 1) / t, np.linalg.norm(layer.rows - rounded, axis=1)
    return a - lost / t, a + lost / t, np.arange(len(layer.rows))


def tile_by_order(rows: Floats) -> NDArray[np.int64]:
    """The order that the bank has today: of the data."""
    return np.arange(len(rows))


def tile_by_splits(rows: Floats) -> NDArray[np.int64]:
    """Order in which tiles are near neighbours: halve along the principal direction, down to one tile."""
    if len(rows) <= TILE:
        return np.arange(len(rows))
    centered = rows - rows.mean(axis=0)
    direction = np.ones(rows.shape[1])
    for _ in range(12):
        direction = centered.T @ (centered @ direction)
        direction /= np.linalg.norm(direction)
    order = np.argsort(centered @ direction)
    half = -(-len(rows) // TILE) // 2 * TILE
    return np.concatenate([part[tile_by_splits(rows[part])] for part in (order[:half], order[half:])])


def make_layer(rows: Floats, labels: NDArray[np.integer], temperature: float, tile: Order) -> Layer:
    """Sort rows by class, order each class by `tile` and cut it."""
    order, tiles, classes = [], [0], [0]
    for j in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == j)
        order.append(members[tile(rows[members])])
        classes.append(classes[-1] + len(members))
        tiles += [*range(classes[-2] + TILE, classes[-1], TILE), classes[-1]]
    ordered = rows[np.concatenate(order)]
    return Layer(rows=ordered, tiles=np.array(tiles), classes=np.array(classes), temperature=temperature)


BOUNDS: dict[str, tuple[Bound, Order, str]] = {
    "oracle, rows": (partial(oracle, tiles=False), tile_by_order, "-"),
    "oracle, tiles": (partial(oracle, tiles=True), tile_by_splits, "-"),
    "summaries, tiles in order": (summaries, tile_by_order, ".02"),
    "summaries, tiles by splits": (summaries, tile_by_splits, ".02"),
    "projection, a quarter": (partial(projection, share=0.25), tile_by_order, ".27"),
    "projection, half": (partial(projection, share=0.5), tile_by_order, ".52"),
    "int8": (eight_bits, tile_by_order, ".26"),
}
"""Bound, order of the rows, and the share of the bank's bytes that it reads before any row is scored."""
