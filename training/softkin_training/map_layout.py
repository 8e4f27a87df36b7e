"""Which axis of a classifier's feature maps is that of channels: read off the ONNX graph around them.

Shapes do not tell: `[8, 8, 16]` are eight channels of a map that is no square, or a square map of sixteen. But ONNX's
own operators on maps take and give channels first, and whoever has them last transposes before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx
from onnx import inliner

from softkin_training.onnx_graphs import downstream, real_inputs
from softkin_training.projection import CHANNELS_FIRST, channels_last

Layout = Literal["first", "last"]

OF_MAPS = {
    *("Conv", "ConvInteger", "ConvTranspose", "QLinearConv", "DeformConv", "MaxPool", "AveragePool", "LpPool"),
    *("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "BatchNormalization", "InstanceNormalization"),
    *("GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth", "GridSample", "Upsample"),
}
"""Their first input and their output are `[B, C, ...]`."""
KEEPING = {
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "Pow", "Where", "Concat", "Split", "Slice", "Pad"),
    *("Resize", "Identity", "Cast", "Dropout", "Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "ThresholdedRelu", "Tanh", "Erf", "Exp", "Log"),
    *("Sqrt", "Reciprocal", "Abs", "Neg", "Clip", "Floor", "Ceil", "Round", "QuantizeLinear", "DequantizeLinear"),
}
"""Axes come out as they went in, and inputs that are maps have them alike."""
ALONG_THE_LAST = {"LayerNormalization", "MatMul", "Softmax", "LogSoftmax"}
"""Where the last axis is that of channels, they work on each place of a map for itself."""
LAYOUTS: dict[tuple[int, ...], tuple[Layout, Layout]] = {
    (0, 2, 3, 1): ("first", "last"),
    CHANNELS_FIRST: ("last", "first"),
}
"""What a transposition has before and after it."""


def layout_of(proto: onnx.ModelProto, tensor: str) -> Layout | None:
    """Whether a tensor `[B, C, H, W]` or `[B, H, W, C]` has its channels first or last.

    Args:
        proto: the model.
        tensor: of the main graph; what this says of one with other than four axes means nothing.

    Returns:
        None where nothing in the graph tells.
    """
    graph = (inliner.inline_local_functions(proto) if proto.functions else proto).graph
    moving: set[str] = set()
    for value in real_inputs(graph):
        moving |= downstream(graph, value.name)  # constants serve maps of either kind
    found: dict[str, Layout] = {}
    for node in graph.node:
        if node.op_type in OF_MAPS:
            found |= dict.fromkeys([node.input[0], node.output[0]], "first")
    known = -1
    while known < len(found):
        known = len(found)
        for node in graph.node:
            _tell(node, moving, found)
    return found.get(tensor)


def are_channels_last(proto: onnx.ModelProto, tensor: str, shape: Sequence[int]) -> bool:
    """Whether what a tensor holds is `[H, W, C]` for each row: as the graph has it, or else by this shape of it."""
    layout = layout_of(proto, tensor) if len(shape) == len(CHANNELS_FIRST) - 1 else None
    return channels_last(shape) if layout is None else layout == "last"


def _tell(node: onnx.NodeProto, moving: set[str], found: dict[str, Layout]) -> None:
    """Add what a node says of the tensors around it; what is known already stays."""
    if node.op_type == "Transpose":
        before, after = LAYOUTS.get(_perm(node), (None, None))
        x, y = node.input[0], node.output[0]
        # Transposed in one direction twice they are no maps of either kind.
        fits = found.get(x, before) == before and found.get(y, after) == after
        if before and after and fits and (x in found or y in found):
            found[x], found[y] = before, after
        return
    ends = [t for t in (*node.input, *node.output) if t in moving]
    if node.op_type in ALONG_THE_LAST:
        ends = [node.input[0], node.output[0]]
        if "last" not in [found.get(t) for t in ends]:
            return
    elif node.op_type not in KEEPING:
        return
    if told := [found[t] for t in ends if t in found]:
        for t in ends:
            found.setdefault(t, told[0])


def _perm(node: onnx.NodeProto) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
