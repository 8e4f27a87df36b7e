"""The last linear layer of an exported classifier, and the features that it reads, which some scores want."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from softkin.scorer import LOGITS

FEATURES = "softkin.features"
"""Output of `with_features`."""
PASSED_THROUGH = ("Identity", "Cast", "Dropout")


@dataclass(frozen=True, kw_only=True)
class Head:
    """`logits = weight @ features + bias`."""

    features: str
    """Name of the tensor it reads, `[B, D]`."""
    weight: NDArray[np.float64]
    """`[C, D]`."""
    bias: NDArray[np.float64]
    """`[C]`."""


def boundary_weights(weight_CD: NDArray[np.floating]) -> NDArray[np.float64]:
    """`[C, C]` of `1 / |w_j - w_c| / (C - 1)`, which turn differences of logits into a mean distance to boundaries.

    0 for a class with itself and between classes of equal weights, which no boundary parts.
    """
    w = weight_CD.astype(np.float64)
    apart_CC = np.zeros((len(w), len(w)))
    for c, row in enumerate(w):
        between = w[c + 1 :] - row
        apart_CC[c, c + 1 :] = np.sqrt(np.einsum("cd,cd->c", between, between))
    apart_CC += apart_CC.T
    return np.divide(1.0, apart_CC, out=np.zeros_like(apart_CC), where=apart_CC > 0) / (len(w) - 1)


def find_head(model: onnx.ModelProto) -> Head | None:
    """The linear layer that yields the logits: Gemm, or MatMul with or without Add; None where there is none."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t

    def constant(name: str) -> NDArray[np.float64] | None:
        return numpy_helper.to_array(constants[name]).astype(np.float64) if name in constants else None

    def maker(name: str) -> onnx.NodeProto | None:
        node = made_by.get(name)
        while node is not None and node.op_type in PASSED_THROUGH:
            node = made_by.get(node.input[0])
        return node

    found: NDArray[np.float64] | None
    bias: NDArray[np.float64] | None = None
    last = maker(LOGITS)
    if last is not None and last.op_type == "Add":
        for i, j in ((0, 1), (1, 0)):
            if (found := constant(last.input[i])) is not None:
                bias, last = found, maker(last.input[j])
                break
    if last is None or last.op_type not in ("Gemm", "MatMul"):
        return None
    weight = constant(last.input[1])
    if weight is None or weight.ndim != 2:
        return None
    options = {a.name: helper.get_attribute_value(a) for a in last.attribute}  # MatMul has none
    if options.get("transA", 0):
        return None
    weight = options.get("alpha", 1.0) * (weight if options.get("transB", 0) else weight.T)
    if len(last.input) > 2 and last.input[2]:
        if bias is not None or (found := constant(last.input[2])) is None:
            return None
        bias = options.get("beta", 1.0) * found
    bias = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias.reshape(-1), (len(weight),))
    return Head(features=last.input[0], weight=weight, bias=bias)


def with_features(model: onnx.ModelProto, head: Head) -> onnx.ModelProto:
    """The same model with the head's features as one more output, `FEATURES`."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.node.append(helper.make_node("Cast", [head.features], [FEATURES], to=TensorProto.FLOAT))
    extended.graph.output.append(
        helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, [None, head.weight.shape[1]])
    )
    return extended
