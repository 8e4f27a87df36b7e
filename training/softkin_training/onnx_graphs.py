"""Surgery on ONNX graphs: find a tensor by its name, cut off what nothing needs, rename everything."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from softkin.errors import InvalidInputError, listed
from softkin.scorer_graph import OLDEST_OPSET

NAMES_SHOWN = 20
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: old models list their initializers among the inputs."""
    constants = {i.name for i in graph.initializer} | {i.values.name for i in graph.sparse_initializer}
    return [i for i in graph.input if i.name not in constants]


def softmax_input(proto: onnx.ModelProto, tensor: str) -> str:
    """Name of what a tensor is the softmax of, by another name or not; empty where a node of another kind yields it."""
    return _input_of("Softmax", proto, tensor)


def sigmoid_input(proto: onnx.ModelProto, tensor: str) -> str:
    """The same of a sigmoid."""
    return _input_of("Sigmoid", proto, tensor)


def _input_of(op_type: str, proto: onnx.ModelProto, tensor: str) -> str:
    origin = {o: n for n in proto.graph.node for o in n.output}
    while (node := origin.get(tensor)) is not None and node.op_type == "Identity":
        tensor = node.input[0]
    return node.input[0] if node is not None and node.op_type == op_type else ""


def copied_input(name: str) -> str:
    """The tensor that `with_copied_input` adds for the input of that name."""
    return f"softkin/copy/{name}"


def with_copied_input(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A model in which a node yields what its input `name` is, so that it can be read as any tensor can."""
    more = onnx.ModelProto()
    more.CopyFrom(proto)
    more.graph.node.insert(0, helper.make_node("Identity", [name], [copied_input(name)]))
    if not any(o.domain in ("", "ai.onnx") for o in more.opset_import):  # a model of trees and nothing else
        more.opset_import.append(helper.make_opsetid("", OLDEST_OPSET))
    return more


def find_tensor(proto: onnx.ModelProto, name: str, field: str) -> str:
    """Name of the tensor that `name` means: a tensor of the main graph, or the only output of a node of that name.

    Args:
        proto: the model.
        name: of a tensor or a node; a tensor goes first.
        field: argument to name in errors.

    Raises:
        InvalidInputError: an empty name, no such name (lists those that come closest), a node of several outputs (lists
            them), or a name inside a subgraph or function, which the outside cannot read.
    """
    if not name:  # it would find the nodes that have none
        raise InvalidInputError(
            field,
            "got '', which is no name; leave out the comma too many, or name a tensor or node: the last of the model "
            f"are {listed(last_tensors(proto))}",
        )
    nodes = proto.graph.node
    tensors = {o for n in nodes for o in n.output if o}
    if name in tensors:
        return name
    found = [o for n in nodes if n.name == name for o in n.output if o]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidInputError(field, f"node {name!r} has {len(found)} outputs, {listed(found)}; name one of them")
    for owner, inner in _inner_nodes(proto):
        if name == inner.name or name in inner.output:
            raise InvalidInputError(
                field, f"{name!r} lies inside {owner}; only tensors of the main graph can be read, name one of those"
            )
    names = sorted(n for n in tensors | {n.name for n in nodes if n.name} if not n.startswith(copied_input("")))
    which, shown = "closest", difflib.get_close_matches(name, names, n=NAMES_SHOWN, cutoff=0.0)
    if not difflib.get_close_matches(name, shown[:1]):  # of who knows no name yet, and looks for layers near the output
        shown, which = last_tensors(proto), "last tensors"
    raise InvalidInputError(
        field,
        f"got {name!r}, which is no tensor or node of the model; it has {len(names)} names, the {which} are "
        f"{listed(shown)}",
    )


def last_tensors(proto: onnx.ModelProto) -> list[str]:
    """Those nearest the output, at most as many as a message shows; constants and what was added left out."""
    named = [o for n in proto.graph.node if n.op_type != "Constant" for o in n.output if o]
    return [o for o in named if not o.startswith(copied_input(""))][-NAMES_SHOWN:]


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _inner_nodes(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Nodes of subgraphs and functions, each with what it lies inside of."""

    def inside(owner: str, node: onnx.NodeProto) -> Iterator[tuple[str, onnx.NodeProto]]:
        for graph in _subgraphs(node):
            for inner in graph.node:
                yield owner, inner
                yield from inside(owner, inner)

    for node in proto.graph.node:
        yield from inside(f"node {node.name!r} ({node.op_type})", node)
    for function in proto.functions:
        for node in function.node:
            yield f"function {function.name!r}", node
            yield from inside(f"function {function.name!r}", node)


def computes_in_half(proto: onnx.ModelProto) -> bool:
    """Whether constants, casts or the inputs of a model have 16-bit floats."""
    attributes = [
        a for nodes in (proto.graph.node, (n for _, n in _inner_nodes(proto))) for node in nodes for a in node.attribute
    ]
    types = [t.data_type for t in proto.graph.initializer]
    types += [i.type.tensor_type.elem_type for i in proto.graph.input]
    types += [a.i if a.name == "to" else a.t.data_type for a in attributes]
    return any(t in HALVES for t in types)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, those that its subgraphs capture among them."""
    names = set(node.input)
    for graph in _subgraphs(node):
        names |= {o.name for o in graph.output}
        for inner in graph.node:
            names |= _reads(inner)
    return names


def prune(graph: onnx.GraphProto, wanted: Sequence[str]) -> None:
    """Keep only what the tensors `wanted` need and the inputs that are none of the constants.

    Shapes are forgotten, those inside subgraphs too: they may tell of another batch size, and onnxruntime computes with
    them.
    """
    producer = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    needed, kept, open_names = set(wanted), set(), list(wanted)
    while open_names:
        i = producer.get(open_names.pop())
        if i is not None and i not in kept:
            kept.add(i)
            more = _reads(graph.node[i]) - needed
            needed |= more
            open_names += more
    nodes = [n for i, n in enumerate(graph.node) if i in kept]
    constants = [t for t in graph.initializer if t.name in needed]
    inputs = real_inputs(graph)
    del graph.input[:], graph.node[:], graph.initializer[:], graph.quantization_annotation[:]
    graph.input.extend(inputs)
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    _forget_shapes(graph)


def _forget_shapes(graph: onnx.GraphProto) -> None:
    del graph.value_info[:]
    for node in graph.node:
        for inner in _subgraphs(node):
            _forget_shapes(inner)


def set_outputs(proto: onnx.ModelProto, tensors: Sequence[str]) -> None:
    """Make tensors the outputs of a model, in the place of its own, and keep only what they need.

    Constants no longer stand among the inputs: the scorer takes the first input for the rows.
    """
    prune(proto.graph, tensors)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors)


def downstream(graph: onnx.GraphProto, source: str) -> set[str]:
    """Names of the tensors that depend on `source`, itself among them."""
    found = {source}
    for node in graph.node:
        if found & _reads(node):
            found.update(node.output)
    return found


def constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    """Small int64 tensors that stand in the graph as initializers or Constant nodes, by name."""
    found = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    small = {k: t for k, t in found.items() if t.data_type == onnx.TensorProto.INT64 and len(t.dims) <= 1}
    return {k: numpy_helper.to_array(t) for k, t in small.items()}


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors wherever they occur, subgraphs included; names that are not keys stay."""
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for inner in _subgraphs(node):
            rename(inner, names)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
