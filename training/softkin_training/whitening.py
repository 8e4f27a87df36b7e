"""Whitening of representations: distances in units of how far rows of one class lie apart, in every direction.

Directions in which no class varies are where outliers stand out (so Mahalanobis distances and ViM find them), and in
plain distances the others drown them. The map is fitted to the bank's rows and lives in the ONNX model, so the scorer
knows nothing of it. Needs no torch. Shapes: N rows, B rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from softkin.mass import METRICS, Metric
from softkin.scorer import reducer_key
from softkin.scorer_graph import representation_output
from softkin_training.class_scatter import class_scatter
from softkin_training.rows import parts_of

SHRINKAGE = 0.2
"""Weight of the mean variance in the variance of every direction: without it, directions that hardly vary would
dominate all distances. Between 0.1 and 0.5 results hardly differ (docs/decisions/0017)."""
DESCRIPTION = f"whitening(shrinkage={SHRINKAGE:g})"
PREFIX = "softkin.whitening"


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """`z -> (z - center) @ matrix`; distances afterwards are squared Euclidean ones."""

    center: NDArray[np.float32]
    """`[D]`."""
    matrix: NDArray[np.float32]
    """`[D, D]`, symmetric and invertible."""
    metric: Metric
    """Metric of the representations before they are whitened."""

    @classmethod
    def fit(cls, z_ND: NDArray[np.float32], labels_N: NDArray[np.integer], metric: Metric) -> Whitening:
        """Fit to labelled rows: the inverse root of their covariance within classes, shrunk by `SHRINKAGE`."""
        _, scatter = class_scatter(z_ND, labels_N)
        variances, directions = np.linalg.eigh(scatter / len(z_ND))
        typical = float(variances.mean()) or 1.0  # all rows equal their class mean: nothing to weigh directions by
        shrunk = (1.0 - SHRINKAGE) * variances + SHRINKAGE * typical
        return cls(
            center=z_ND.mean(axis=0, dtype=np.float64).astype(np.float32),
            matrix=((directions / np.sqrt(shrunk)) @ directions.T).astype(np.float32),
            metric=metric,
        )

    def apply(self, z_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Whiten representations `[B, D]`."""
        return np.asarray((z_BD - self.center) @ self.matrix, np.float32)

    def overwrite(self, z_ND: NDArray[np.float32]) -> None:
        """Whiten representations `[N, D]` where they are, so that those on disk need not fit into memory."""
        for part in parts_of(len(z_ND)):
            z_ND[part] = self.apply(z_ND[part])

    def undo(self, z_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """Undo `apply` of representations `[B, D]`, up to rounding."""
        inverse = np.linalg.inv(self.matrix.astype(np.float64))
        return np.asarray(z_BD @ inverse + self.center, np.float32)


def with_whitening(model: bytes, whitenings: Mapping[str, Whitening]) -> bytes:
    """The ONNX model with the representations of the layers named whitened, under the names they had."""
    proto = onnx.load_from_string(model)
    metadata = {p.key: p for p in proto.metadata_props}
    for layer, whitening in whitenings.items():
        output, raw = representation_output(layer), f"{PREFIX}.{layer}.raw"
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [raw if name == output else name for name in names]
        constants = {"center": whitening.center, "matrix": whitening.matrix}
        named = {key: f"{PREFIX}.{layer}.{key}" for key in constants}
        proto.graph.initializer.extend(numpy_helper.from_array(constants[k], name) for k, name in named.items())
        moved = f"{PREFIX}.{layer}.centered"
        proto.graph.node.append(helper.make_node("Sub", [raw, named["center"]], [moved]))
        proto.graph.node.append(helper.make_node("MatMul", [moved, named["matrix"]], [output]))
        proto.metadata_props.add(key=f"{PREFIX}.{layer}", value=whitening.metric)
        reducer = metadata.get(reducer_key(layer))
        if reducer is None:
            proto.metadata_props.add(key=reducer_key(layer), value=DESCRIPTION)
        else:
            reducer.value = DESCRIPTION if reducer.value == "none" else f"{reducer.value} + {DESCRIPTION}"
    return bytes(proto.SerializeToString())


def whitenings_of(model: onnx.ModelProto) -> dict[str, Whitening]:
    """What `with_whitening` put into a model, by layer; empty where nothing is whitened."""
    constants = {i.name: i for i in model.graph.initializer}
    found = {}
    for entry in model.metadata_props:
        layer = entry.key.removeprefix(f"{PREFIX}.")
        if layer != entry.key:
            center, matrix = (numpy_helper.to_array(constants[f"{PREFIX}.{layer}.{k}"]) for k in ("center", "matrix"))
            found[layer] = Whitening(center=center, matrix=matrix, metric=next(m for m in METRICS if m == entry.value))
    return found
