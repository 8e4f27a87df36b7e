"""Distances to a classifier's decision boundaries, as one more output of its ONNX model: the joint form fuses them.

fDBD (Liu & Qin 2024, "Fast Decision Boundary based Out-of-Distribution Detector", eq. 4 to 7), which is made for the
predicted class, extended to every class j:

    b_j(h) = 1 / (C - 1) * sum_{c != j} (logit_j - logit_c) / |w_j - w_c| / |h - mean|

The larger it is, the more a row is a member of the class. Networks with batch normalisation put features of outliers
close to those of inliers, but also close to the boundaries. Needs no torch.

Shapes: B rows, M rows of which the mean is taken, D features, C classes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from softkin.errors import DataError
from softkin.graph_builder import GraphBuilder
from softkin.scorer import BOUNDARY, LOGITS, Network
from softkin_training.network_head import FEATURES, Head, boundary_weights, find_head, with_features
from softkin_training.rows import Rows
from softkin_training.scratch import written_to

PREFIX = "softkin.boundary"
MEAN_ROWS = 5000
"""The mean of the features is taken over at most so many training rows."""


def with_boundary(model: bytes, rows: Rows) -> bytes:
    """Add the output `boundary_distance`, float32 `[B, C]`, to an ONNX model; all its other outputs stay as they are.

    Args:
        model: a classifier whose logits come from a linear layer.
        rows: training rows, of which the mean of the features is taken.

    Raises:
        DataError: the logits are not those of a linear layer, there is one class, or the network overflows on a row.
    """
    proto = onnx.load_from_string(model)
    head = find_head(proto)
    if head is None:
        raise DataError(
            "the part 'boundary_distance' needs a network whose logits are a linear layer's (Gemm, or MatMul and Add), "
            "and this one's are not; leave the part out"
        )
    if len(head.weight) < 2:
        raise DataError("the part 'boundary_distance' needs 2 classes or more, between which there is a boundary")
    mean = _mean_features(with_features(proto, head), rows)
    _append(proto, head, mean)
    return bytes(proto.SerializeToString())


def _mean_features(model: onnx.ModelProto, rows: Rows) -> NDArray[np.float32]:
    """Mean `[D]` of the features over at most `MEAN_ROWS` rows."""
    # Every n-th of each class: of rows whose classes take turns, every n-th may be of one class.
    some = np.sort(np.argsort(rows.y, kind="stable")[:: -(-len(rows) // MEAN_ROWS)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with written_to(path.parent, "network"):
            onnx.save(model, path)
        features_MD = Network(path).run(rows.read(some))[FEATURES]
    mean = features_MD.mean(axis=0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(mean).all():
        raise DataError("the network overflows on training rows; check their scale")
    return mean


def _append(proto: onnx.ModelProto, head: Head, mean_D: NDArray[np.float32]) -> None:
    weights_CC = boundary_weights(head.weight)
    g = GraphBuilder(PREFIX)
    axis = g.constant(np.array([1], np.int64))
    logits = g.op("Cast", [LOGITS], to=TensorProto.FLOAT)
    # Less the largest: what all logits have in common would cost the sum its digits.
    gaps = g.op("Sub", [logits, g.op("ReduceMax", [logits, axis], keepdims=1)])
    from_each = g.op("Mul", [gaps, g.constant(weights_CC.sum(axis=1).astype(np.float32))])
    from_others = g.op("MatMul", [gaps, g.constant(weights_CC.astype(np.float32))])
    moved = g.op("Sub", [g.op("Cast", [head.features], to=TensorProto.FLOAT), g.constant(mean_D)])
    off = g.op("Max", [g.op("ReduceL2", [moved, axis], keepdims=1), g.constant(float(np.finfo(np.float32).tiny))])
    distance = g.op("Div", [g.op("Sub", [from_each, from_others]), off])
    g.nodes.append(helper.make_node("Identity", [distance], [BOUNDARY], name=f"{PREFIX}/{BOUNDARY}"))
    proto.graph.node.extend(g.nodes)
    proto.graph.initializer.extend(g.initializers)
    proto.graph.output.append(helper.make_tensor_value_info(BOUNDARY, TensorProto.FLOAT, [None, len(weights_CC)]))
