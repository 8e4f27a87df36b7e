"""A model that takes one row at a time, made to take several: for models with their batch of 1 baked into shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper

INNER = "one_row/"
"""Before all names of the model inside: none outside may be the same."""


def row_by_row(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The model inside a Scan over its rows, which yields `tensors` for all of them, and nothing else.

    As slow as the model is for single rows, and its values are the same.

    Args:
        proto: a model of opset 13 or newer with one input, `[1, ...]`; it is left as it is.
        tensors: of its main graph, `[1, ...]` each.
    """
    body = compose.add_prefix_graph(proto.graph, INNER)
    (row,) = body.input
    whole = row.name
    row.name = f"{INNER}row"
    if row.type.tensor_type.HasField("shape"):
        del row.type.tensor_type.shape.dim[0]
    first = f"{INNER}first_axis"
    body.initializer.append(numpy_helper.from_array(np.array([0], np.int64), first))
    nodes = [helper.make_node("Unsqueeze", [row.name, first], [whole]), *body.node]
    nodes += [helper.make_node("Squeeze", [INNER + name, first], [f"{INNER}each/{name}"]) for name in tensors]
    del body.node[:], body.output[:]
    body.node.extend(nodes)
    body.output.extend(onnx.ValueInfoProto(name=f"{INNER}each/{name}") for name in tensors)

    found = onnx.ModelProto()
    found.CopyFrom(proto)
    graph = found.graph
    del graph.node[:], graph.initializer[:], graph.sparse_initializer[:], graph.value_info[:]
    entry = graph.input[0]
    if entry.type.tensor_type.HasField("shape"):
        entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    graph.node.append(helper.make_node("Scan", [entry.name], list(tensors), body=body, num_scan_inputs=1))
    return found
