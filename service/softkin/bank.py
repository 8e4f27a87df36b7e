"""The bank of training representations, laid out the way the scorer reads it: class-sorted tiles.

Rows of one class stand together in tiles that never straddle a class. First come all the whole tiles of
`LARGE_TILE_ROWS` rows, then what is left of each class in smaller tiles, the last one filled with padding rows of mass
0. So the class mass is a sum over whole tiles, few of them, and hardly a row is padding. Small tiles have `TILE_ROWS`
rows or, where classes are so many or so small that much would be padding, the number of rows that costs least.

A row's logit is a single dot product, up to a term that depends on the query alone:

    cosine              z.b / T + log w              rows b, scale 1/T, offset T log w
    squared_euclidean   (2 z.b - |b|^2) / T + log w  rows b, scale 2/T, offset T/2 log w - |b|^2 / 2

Rows in float32 hold their offset as one number more, which the scorer multiplies by 1. Rows in float16 and int8 have
their offsets beside them: see `precision.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from softkin import mass
from softkin.errors import DataError
from softkin.mass import Metric
from softkin.row_names import RowNames

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

TILE_ROWS = 64
LARGE_TILE_ROWS = 256
SMALLEST_TILE_ROWS = 2
TILE_COST, FOLD_COST = 2, 3
"""What a tile costs beside its rows, and what merging it with others of its class costs: in rows of some 64 numbers."""
LEAST_SAVING, LEAST_ROWS_SAVED = 0.05, 2048
"""The share of a bank's cost, and the rows, that another size of small tiles than `TILE_ROWS` must save to be used."""
PADDING_LABEL = -1
PADDING_OFFSET = np.float32(-1e30)
"""Far below every real logit, and still finite times any scale."""
CENTER_ROWS = 1024
"""So many rows, spread evenly over the bank, are enough to find its center."""
BLOCK_ROWS = 1 << 12
"""Rows that are laid out at a time: no more of them need be in memory twice."""
LARGEST_SQUARE = 1e28
"""Largest squared norm of a centred representation: a row farther away might get a lower logit than padding."""


@dataclass(frozen=True, kw_only=True)
class LayerBank:
    """One layer's share of the bank."""

    metric: Metric
    temperature: float
    rows: NDArray[np.generic]
    """`[N, D+1]` float32 tiled rows, the last column being the offset; or `[N, D]` float16 or int8 without it."""
    center: NDArray[np.float32]
    """`[D]`: subtracted from queries and already from `rows`; keeps the dot products from cancelling. 0 for cosine."""
    offsets: NDArray[np.float32] | None = None
    """`[N]`: offsets of float16 and int8 rows."""
    scales: NDArray[np.float32] | None = None
    """`[N]`: what an int8 row is multiplied by to give the representation."""

    @property
    def precision(self) -> Precision:
        """What a row's numbers are stored in."""
        return next(p for p in PRECISIONS if self.rows.dtype == p)

    @property
    def dim(self) -> int:
        """Width D of the representation."""
        return self.rows.shape[1] - (self.precision == "float32")

    @property
    def scale(self) -> float:
        """What the scorer multiplies queries by."""
        return (1.0 if self.metric == "cosine" else 2.0) / self.temperature

    def row_offsets(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """`[n]`: the offsets of tiled rows, wherever they are stored."""
        return self.rows[rows, -1].astype(np.float32) if self.offsets is None else self.offsets[rows]

    def representations(self, rows: NDArray[np.integer] | NDArray[np.bool_] | slice) -> NDArray[np.float32]:
        """`[n, D]` float32: what the chosen tiled rows stand for, rounded as they are stored."""
        z = self.rows[rows][:, : self.dim].astype(np.float32)
        if self.scales is not None:
            z *= self.scales[rows][:, None]
        return np.asarray(z + self.center)


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Representations of training rows with their labels and example ids, in tiles; padding included in N."""

    layers: dict[str, LayerBank]
    labels: NDArray[np.int32]
    """`[N]` class of each row; `PADDING_LABEL` for padding."""
    ids: NDArray[np.int64]
    """`[1, N]` example ids, or `[L, N]` where every layer has its own (condensed banks); -1 for padding."""
    weights: NDArray[np.float32]
    """`[1, N]` or `[L, N]`, like `ids`: row weights; 0 for padding."""
    num_classes: int
    names: RowNames | None = None
    """What examples are called, where that is known."""

    @property
    def size(self) -> int:
        """Number of real rows."""
        return int((self.labels != PADDING_LABEL).sum())

    @property
    def examples(self) -> NDArray[np.int64]:
        """`[n]` ids of the examples that stand in some layer, ascending, each once."""
        return np.unique(self.ids[self.ids >= 0])  # without padding

    @property
    def precision(self) -> Precision:
        """What the rows of all layers are stored in."""
        return next(iter(self.layers.values())).precision

    @property
    def class_weights(self) -> NDArray[np.float64]:
        """`[C]` total weight per class: the rows that it stands for, the same in every layer."""
        real = self.labels != PADDING_LABEL
        weights = self.weights[0, real].astype(np.float64)
        return np.asarray(np.bincount(self.labels[real], weights, self.num_classes), np.float64)

    def without_rows(self) -> Bank:
        """The same bank without its representations, for when a session has read them from the file."""
        empty = {n: replace(b, rows=b.rows[:0].copy(), offsets=None, scales=None) for n, b in self.layers.items()}
        return replace(self, layers=empty)

    @property
    def large_rows(self) -> int:
        """Number of leading rows that stand in large tiles, each of one class and without padding."""
        return tiles_of(self.labels)[0]

    @property
    def small_tile_rows(self) -> int:
        """Rows of each tile behind those."""
        return tiles_of(self.labels)[1]


def pack(
    representations: dict[str, NDArray[np.float32]],
    labels: NDArray[np.integer],
    ids: NDArray[np.integer],
    *,
    num_classes: int,
    temperatures: dict[str, float],
    metrics: dict[str, Metric],
    weights: NDArray[np.floating] | None = None,
    tile_rows: int | None = None,
) -> Bank:
    """Lay representations out in tiles.

    Args:
        representations: per layer `[N, D]`, finite; for cosine each row has unit norm (or is zero).
        labels: `[N]` class indices; every class in [0, num_classes) must occur.
        ids: `[N]` example ids, unique; or `[L, N]` where layers hold different examples, in the order of the layers.
        num_classes: C.
        temperatures: per layer, > 0.
        metrics: per layer.
        weights: `[N]` or `[L, N]` positive row weights; all 1 when left out.
        tile_rows: of a small tile, 2 to 256; what costs least when None.

    Raises:
        DataError: arrays disagree, a class has no rows, a value is not finite or too large, an id occurs twice, or no
            tile has so many rows.
    """
    if tile_rows is not None and not SMALLEST_TILE_ROWS <= tile_rows <= LARGE_TILE_ROWS:
        raise DataError(
            f"bank: tile_rows is {tile_rows}; must lie in {SMALLEST_TILE_ROWS} to {LARGE_TILE_ROWS}, or be left out"
        )
    n = len(labels)
    w_KN = np.atleast_2d(np.ones(n, np.float32) if weights is None else np.asarray(weights, np.float32))
    ids_KN = np.atleast_2d(np.asarray(ids))
    _check(representations, labels, ids_KN, w_KN, num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    tile_rows = tile_rows or _cheapest_tile_rows(counts)
    take = _tile_order(np.asarray(labels), counts, tile_rows)
    padding = take < 0
    places = np.empty(n, np.int64)
    places[take[~padding]] = np.flatnonzero(~padding)
    layers = {}
    for (name, z_ND), w in zip(representations.items(), np.broadcast_to(w_KN, (len(representations), n)), strict=True):
        layers[name] = _tiled(name, z_ND, w, places, len(take), metrics[name], temperatures[name])
    return Bank(
        layers=layers,
        labels=np.where(padding, PADDING_LABEL, labels[take]).astype(np.int32),
        ids=np.where(padding, -1, ids_KN[:, take]).astype(np.int64),
        weights=np.where(padding, 0.0, w_KN[:, take]).astype(np.float32),
        num_classes=num_classes,
    )


def _tiled(
    name: str,
    z_ND: NDArray[np.float32],
    weights: NDArray[np.float32],
    places: NDArray[np.int64],
    num_tiled: int,
    metric: Metric,
    temperature: float,
) -> LayerBank:
    """A layer whose row i stands at `places[i]`; the representations are read in order, for they may be on disk."""
    n, dim = z_ND.shape
    center = np.zeros(dim, np.float32)
    if metric == "squared_euclidean":
        # Not the mean: one huge row would draw it so far from all others that their distances drown in rounding.
        sample = z_ND[:: -(-n // CENTER_ROWS)].astype(np.float64)
        center = np.median(sample, axis=0).astype(np.float32)
    rows = np.zeros((num_tiled, dim + 1), np.float32)
    rows[:, -1] = PADDING_OFFSET
    for start in range(0, n, BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        offset = temperature * np.log(weights[part])
        if metric == "squared_euclidean":
            b = z_ND[part] - center
            squares = np.einsum("nd,nd->n", b, b, dtype=np.float64)
            if squares.max() > LARGEST_SQUARE:
                raise DataError(
                    f"bank: layer {name!r} has rows {float(squares.max()) ** 0.5:.3g} away from its median, and at "
                    f"most {LARGEST_SQUARE**0.5:g} are scored right; scale the rows, or choose metric cosine"
                )
            offset = offset / 2 - squares / 2
        else:
            b = mass.unit_rows(z_ND[part])
        rows[places[part], :-1], rows[places[part], -1] = b, offset
    return LayerBank(metric=metric, temperature=temperature, rows=rows, center=center)


def tiles_of(labels: NDArray[np.int32]) -> tuple[int, int]:
    """How tiled rows are divided into tiles, so that no tile straddles a class or begins with padding.

    Args:
        labels: `[N]` of tiled rows, `PADDING_LABEL` for padding.

    Returns:
        The number of leading rows in tiles of `LARGE_TILE_ROWS`, which have no padding; the rows of each other tile:
        `TILE_ROWS` where that is possible, else the largest size that is, 0 where none is.
    """
    whole = len(labels) // LARGE_TILE_ROWS
    tiles = labels[: whole * LARGE_TILE_ROWS].reshape(whole, LARGE_TILE_ROWS)
    pure = (tiles == tiles[:, :1]).all(axis=1) & (tiles[:, 0] != PADDING_LABEL)
    large_rows = LARGE_TILE_ROWS * int(whole if pure.all() else pure.argmin())
    rest = labels[large_rows:]
    real = np.flatnonzero(rest != PADDING_LABEL)
    classes = rest[real]
    starts = real[1:][classes[1:] != classes[:-1]]
    common = int(np.gcd.reduce(starts, initial=len(rest)))
    sizes = (TILE_ROWS, *range(LARGE_TILE_ROWS, SMALLEST_TILE_ROWS - 1, -1))
    return large_rows, next((n for n in sizes if common % n == 0 and (rest[::n] != PADDING_LABEL).all()), 0)


def _cheapest_tile_rows(counts: NDArray[np.integer]) -> int:
    large, rest = np.divmod(counts, LARGE_TILE_ROWS)

    def cost(rows: int) -> int:
        tiles = -(-rest // rows)
        merged = bool((large + tiles > 1).any())
        return int((large * LARGE_TILE_ROWS + tiles * rows).sum() + (TILE_COST + merged * FOLD_COST) * tiles.sum())

    best = min(range(SMALLEST_TILE_ROWS, LARGE_TILE_ROWS + 1), key=cost)
    usual = cost(TILE_ROWS)
    return best if usual - cost(best) > max(LEAST_ROWS_SAVED, LEAST_SAVING * usual) else TILE_ROWS


def _tile_order(labels: NDArray[np.integer], counts: NDArray[np.integer], tile_rows: int) -> NDArray[np.int64]:
    """Source index of every tiled row, -1 for padding."""
    order = np.argsort(labels, kind="stable")
    large: list[NDArray[np.int64]] = []
    small: list[NDArray[np.int64]] = []
    for rows in np.split(order, np.cumsum(counts)[:-1]):
        cut = len(rows) // LARGE_TILE_ROWS * LARGE_TILE_ROWS
        large.append(rows[:cut])
        small += [rows[cut:], np.full((cut - len(rows)) % tile_rows, -1, np.int64)]
    return np.concatenate(large + small)


def _check(
    representations: dict[str, NDArray[np.float32]],
    labels: NDArray[np.integer],
    ids: NDArray[np.integer],
    weights: NDArray[np.float32],
    num_classes: int,
) -> None:
    n, layers = len(labels), len(representations)
    for what, array in {"ids": ids, "weights": weights}.items():
        if array.ndim != 2 or len(array) not in (1, layers):
            raise DataError(
                f"bank: {what} have shape {list(array.shape)}; give one row, or one for each of {layers} layers"
            )
    lengths = {**{k: len(v) for k, v in representations.items()}, "ids": ids.shape[1], "weights": weights.shape[1]}
    for what, length in lengths.items():
        if length != n:
            raise DataError(f"bank: {what} has {length} rows, labels have {n}; they must describe the same rows")
    counts = np.bincount(labels[labels >= 0], minlength=num_classes) if n else np.zeros(num_classes)
    if len(counts) != num_classes or (n and labels.min() < 0):
        raise DataError(f"bank: labels must lie in [0, {num_classes}); got [{labels.min()}, {labels.max()}]")
    if (counts == 0).any():
        raise DataError(f"bank: class {int(counts.argmin())} has no rows; every class needs at least one")
    if any((np.diff(np.sort(row)) == 0).any() for row in ids):
        raise DataError("bank: example ids must be unique, or evidence cannot be traced back")
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise DataError("bank: weights must be finite and positive")
    for i, (name, z) in enumerate(representations.items()):
        bad = ~np.isfinite(z).all(axis=1)
        if bad.any():
            example = int(ids[i if len(ids) > 1 else 0, bad.argmax()])
            raise DataError(f"bank: layer {name!r}, example {example} has a value that is not finite")
