"""Nodes from a tensor of a classifier to a representation: in float32, standardised, flattened, averaged, projected.

Exactly what `export.py` does for torch models, where both do it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from softkin.errors import InvalidInputError
from softkin.graph_builder import GraphBuilder, constant_bytes
from softkin.mass import Metric
from softkin.scorer_graph import representation_output
from softkin_training.columns import STANDARDIZED, Columns
from softkin_training.projection import CHANNELS_FIRST, SMALLEST_NORM, projection_matrix

Array = NDArray[Any]

LARGEST_MODEL_BYTES = 2**31 - 2**20
"""A protobuf ends at 2 GiB; what the bank adds to the graph is small."""
FAR_OFF = 1000.0
"""Squared distance of rows from the origin, in units of that from their median: beyond it float32 shows."""


def refuse_too_large(graph: onnx.GraphProto) -> None:
    """Refuse a graph whose constants, those beside the file among them, are more than a bundle's network can hold.

    Raises:
        InvalidInputError: names both sizes.
    """
    size = constant_bytes(graph)
    if size > LARGEST_MODEL_BYTES:
        raise InvalidInputError(
            "onnx",
            f"the constants of the model take {size / 2**30:.2f} GiB, a bundle's network holds at most "
            f"{LARGEST_MODEL_BYTES / 2**30:.2f} GiB; convert them to float16, take a smaller model, or give the "
            "vectors that it makes to fit --embeddings",
        )


def after_columns(columns: Columns | None, reducer: str) -> str:
    """Name of a reducer, with the standardisation of columns before it, if there is one."""
    if columns is None:
        return reducer
    return STANDARDIZED if reducer == "none" else f"{STANDARDIZED} + {reducer}"


def add_representation(
    g: GraphBuilder,
    source: str,
    layer: str,
    probe_ND: Array,
    *,
    metric: Metric,
    max_dim: int,
    seed: int,
    columns: Columns | None = None,
) -> None:
    """Nodes from a tensor `[B, ...]` of any number type to the float32 output `[B, min(D, max_dim)]` of a layer.

    `probe_ND` are values of the tensor, flattened. Where they lie far from the origin, their median becomes it for
    squared distances, which do not change but for float32: |z - b|^2 is computed as |z|^2 + |b|^2 - 2 z.b. Columns that
    are standardised come before all else; for cosine they are divided by their deviations alone, and keep their origin.

    Raises:
        InvalidInputError: one number a row has no direction for cosine, or the projection is too large for a file.
    """
    width = probe_ND.shape[1]
    if width == 1 and metric == "cosine":
        # It may be the default, so nothing is said of what was given.
        raise InvalidInputError(
            "metric",
            f"cosine compares the directions of rows, and {layer!r} is one number a row, which has none; choose "
            "squared_euclidean for it",
        )

    def unit_rows(z_BD: str) -> str:
        norm = g.op("ReduceL2", [z_BD, g.constant(np.array([1], np.int64))], keepdims=1)
        return g.op("Div", [z_BD, g.op("Max", [norm, g.constant(SMALLEST_NORM)])])

    if columns is not None:
        # In float64: a time in seconds since 1970 has no minutes in float32. Directions keep their origin.
        center = columns.center if metric != "cosine" else np.zeros_like(columns.center)
        probe_ND = (probe_ND.astype(np.float64) - center) / columns.deviation
        moved = g.op("Sub", [g.op("Cast", [source], to=TensorProto.DOUBLE), g.constant(center)])
        source = g.op("Div", [moved, g.constant(columns.deviation)])
    z_BD = g.op("Flatten", [g.op("Cast", [source], to=TensorProto.FLOAT)], axis=1)
    if metric == "cosine":
        z_BD = unit_rows(z_BD)
    elif _far_off(probe_ND, center := np.median(probe_ND.astype(np.float64), axis=0)):
        z_BD = g.op("Sub", [z_BD, g.constant(center.astype(np.float32))])
    if width > max_dim and 4 * width * max_dim > LARGEST_MODEL_BYTES:
        raise InvalidInputError(
            "max_dim",
            f"got {max_dim} for {layer!r}, {width} numbers a row, whose projection would take "
            f"{4 * width * max_dim / 2**30:.2f} GiB; a bundle's network holds at most "
            f"{LARGEST_MODEL_BYTES / 2**30:.2f} GiB: lower it, or name a narrower layer",
        )
    matrix = projection_matrix(width, max_dim, seed)
    if matrix is not None:
        z_BD = g.op("MatMul", [z_BD, g.constant(matrix)])
        if metric == "cosine":
            z_BD = unit_rows(z_BD)
    name = representation_output(layer)
    g.nodes.append(helper.make_node("Identity", [z_BD], [name], name=f"expose/{name}"))


def add_pooling(g: GraphBuilder, source: str, side: int, *, last: bool) -> str:
    """Add nodes that average maps over squares, as `projection.pooled` does; return the name of their result."""
    z = g.op("Cast", [source], to=TensorProto.FLOAT)
    if last:
        z = g.op("Transpose", [z], perm=CHANNELS_FIRST)
    square = [side, side]
    return g.op("AveragePool", [z], kernel_shape=square, strides=square, ceil_mode=1, count_include_pad=0)


def _far_off(z_ND: Array, center: Array) -> bool:
    spread = np.square(z_ND - center).sum(axis=1).mean()
    return bool(np.square(center).sum() > FAR_OFF * spread)
