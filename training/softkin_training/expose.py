"""Any ONNX classifier -> the network of a detector: `logits` and a reduced representation of each layer asked for.

Whatever a layer needs becomes nodes of the graph: float32, flattened, normalised for cosine, projected where it is
wide, exactly as `export.py` does it for torch models. Bare vectors become a network too, of these nodes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from softkin import mass
from softkin.detector_graph import OUTPUTS
from softkin.errors import InvalidInputError
from softkin.graph_builder import GraphBuilder
from softkin.mass import Metric
from softkin.scorer import BOUNDARY, LOGITS, MASSES, reducer_key
from softkin.scorer_graph import IR_VERSION, OPSET, representation_output
from softkin_training.class_output import OUTPUT_KINDS, OutputKind, choose_output, read_output, refuse_several_labels
from softkin_training.columns import STANDARDIZED, Columns
from softkin_training.fit_rows import axes_of
from softkin_training.foreign import adapt, refuse_training, the_input, with_wide_input
from softkin_training.layer_metrics import Metrics, metric_of
from softkin_training.map_layout import are_channels_last
from softkin_training.onnx_graphs import (
    copied_input,
    find_tensor,
    real_inputs,
    rename,
    sigmoid_input,
    softmax_input,
    with_copied_input,
)
from softkin_training.projection import (
    SMALLEST_NORM,
    describe_reducer,
    pooled,
    pooling,
)
from softkin_training.representation_graph import (
    add_pooling,
    add_representation,
    after_columns,
    refuse_too_large,
)
from softkin_training.trial import TensorError

Array = NDArray[Any]

ENERGY_TOLERANCE = 1e-3
"""Energies of rows that differ by less are taken for constant."""
EQUAL_MEANS = 1e-4
"""Largest difference between rows, of the largest value, up to which means say nothing where the maps do."""
OUR_PREFIXES = ("representation.", "contribution.", "row.", "model/", "expose/", "softkin")
"""What names of tensors begin with that are added to a model, here or where a detector is made of it."""
INPUTS = "inputs"
"""The input of a network made of bare vectors, and of one whose own name for it is taken."""
EMBEDDING = "embedding"
"""The only layer of a network made of bare vectors."""


@dataclass(frozen=True, kw_only=True)
class ExposedLayer:
    """Where a representation comes from."""

    name: str
    tensor: str
    """Its name in the model as it was given."""
    width: int
    """Numbers in one flattened row, before they are reduced."""
    dim: int
    """Numbers afterwards."""
    reducer: str
    is_input: bool = False
    """Whether it is what the model takes: rows themselves."""

    @property
    def standardized(self) -> bool:
        """Whether its columns are compared in units of their deviations."""
        return self.reducer.startswith(STANDARDIZED)


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """A network for a detector, and how it came to be."""

    model: bytes
    """Serialised ONNX: one input; outputs `logits` (classifiers) and `representation.<layer>`."""
    layers: tuple[ExposedLayer, ...]
    output: str = ""
    """The tensor that the logits come from; empty for bare vectors."""
    output_kind: OutputKind = "logits"
    before_softmax: str = ""
    """What the output is the softmax of, if it is one: taken for the output in its place, it has energy."""
    before_sigmoid: str = ""
    """What sigmoids, one for each of several classes, were made of, if the output is that: they sum to anything."""
    single: bool = False
    """Whether the output is a single number a row, which stands for the second of two classes."""
    is_output: tuple[str, ...] = ()
    """Layers that hold what the output holds, which says little of what a row looks like."""
    num_classes: int = 0
    """Columns of the logits; 0 for bare vectors."""
    has_energy: bool = False
    """Whether the energy of the logits says anything: it is constant where they come from probabilities."""
    changes: tuple[str, ...] = ()
    """What had to be changed in the model, in words."""


def expose(
    proto: onnx.ModelProto,
    probe: Array,
    *,
    layers: Sequence[str],
    metric: Metrics,
    max_dim: int,
    seed: int,
    max_side: int = 0,
    columns: Columns | None = None,
    num_classes: int | None = None,
    output: str | None = None,
    output_kind: str = "auto",
) -> Exposed:
    """Give an ONNX classifier the outputs of a detector's network.

    Args:
        proto: the classifier; it is left as it is.
        probe: `[n >= 1, ...]` raw inputs that the model is run on: to learn shapes, to tell probabilities from logits,
            and to prove that rows do not influence each other and that every change leaves the values as they are.
        layers: names of tensors of the main graph, or of nodes with one output; the batch is their first axis. That of
            the input stands for the rows themselves: what there is to compare of a model of trees.
        metric: of the representations: one for all layers, or one per layer.
        max_dim: wider layers are projected to this many numbers.
        seed: of the projections: `seed + i` for layer i.
        max_side: larger maps, `[B, C, H, W]` or `[B, H, W, C]` as the graph has them, are averaged down to at most this
            many rows and columns before; 0 = none.
        columns: what the input is standardised by as a layer; None: as it is.
        num_classes: how many classes there are; None: as many as the output has columns.
        output: tensor, node or output that gives a number per class, or one number for two classes; None: the only
            float output that fits.
        output_kind: one of `OUTPUT_KINDS`; `auto`: probabilities where all rows of the probe lie within [0, 1] and sum
            to 1, whose log (of at least the smallest normal float32) becomes the logits.

    Raises:
        InvalidInputError: names the argument: a layer or output that is not there or unfit, a model that cannot be
            brought to one input, a free batch axis and a known opset, that answers differently per call, or gives rows
            several labels.
    """
    if output_kind not in OUTPUT_KINDS:
        raise InvalidInputError("output_kind", f"got {output_kind!r}; must be one of {OUTPUT_KINDS}")
    proto, tensors = _find_layers(proto, layers)
    proto, widened = with_wide_input(proto)
    input_name = the_input(proto, probe).name
    refuse_training(proto)
    source = choose_output(proto, probe, num_classes, output)
    try:
        adapted = adapt(proto, list(dict.fromkeys([*tensors.values(), source])), probe)
    except TensorError as e:
        field = "layers" if e.tensor in tensors.values() else "output"
        raise InvalidInputError(field, f"{e}; name another tensor or node") from None
    for name, tensor in tensors.items():
        _refuse_not_finite("layers", name, adapted.values[tensor])
        _refuse_constant(name, adapted.values[tensor])
    _refuse_not_finite("output", source, adapted.values[source])
    y_BC, kind = read_output(adapted.values[source], output_kind, source)
    several = adapted.values[source][0].size > 1
    sigmoid = sigmoid_input(proto, source) if several and kind == "logits" else ""
    if sigmoid and output_kind == "auto":
        refuse_several_labels(y_BC, source)

    g = GraphBuilder("expose")  # the bank comes with a builder of its own
    found = []
    for i, (name, tensor) in enumerate(tensors.items()):
        z, from_tensor = adapted.values[tensor], f"model/{tensor}"
        width = z[0].size
        last = are_channels_last(proto, tensor, z.shape[1:])
        side, left = pooling(z.shape[1:], max_side, last=last)
        if side > 1:
            from_tensor = add_pooling(g, from_tensor, side, last=last)
            maps, z = z, pooled(z.astype(np.float64), side, last=last)
            _refuse_equal_means(name, maps, z, max_side)
        z_ND, of_layer = z.reshape(len(probe), -1), metric_of(metric, name)
        is_input = tensor == copied_input(name)
        by = columns if is_input else None
        add_representation(g, from_tensor, name, z_ND, metric=of_layer, max_dim=max_dim, seed=seed + i, columns=by)
        reducer = describe_reducer(left, max_dim, seed + i, side)
        found.append(
            ExposedLayer(
                name=name,
                tensor=name if is_input else tensor,
                width=width,
                dim=min(left, max_dim),
                reducer=after_columns(by, reducer),
                is_input=is_input,
            )
        )
    _add_logits(g, f"model/{source}", kind, adapted.values[source].shape[1:])

    network = adapted.proto
    # A tensor of the model may be called as one of ours is, `logits` above all.
    produced = [o for n in network.graph.node for o in n.output] + [t.name for t in network.graph.initializer]
    produced += [t.values.name for t in network.graph.sparse_initializer]
    names = {n: f"model/{n}" for n in produced if n}
    if _is_ours(input_name):
        names[input_name] = INPUTS
        widened += (f"calling its input {input_name!r} {INPUTS!r}",)
    rename(network.graph, names)
    for node in network.graph.node:
        if _is_ours(node.name):  # of a bundle's own network; onnxruntime takes no two of one name
            node.name = f"model/{node.name}"
    shape = network.graph.input[0].type.tensor_type.shape.dim
    for length in ["batch", *probe.shape[1:]] if not shape else ():
        shape.add(**{"dim_param" if isinstance(length, str) else "dim_value": length})
    return Exposed(
        model=_serialised(network, g, found, num_logits=y_BC.shape[1]),
        layers=tuple(found),
        output=source,
        output_kind=kind,
        before_softmax=softmax_input(proto, source),
        single=not several,
        is_output=tuple(n for n, t in tensors.items() if _alike(adapted.values[t], adapted.values[source])),
        before_sigmoid=sigmoid,
        num_classes=y_BC.shape[1],
        has_energy=kind == "logits" and bool(np.ptp(mass.energy(y_BC)) > ENERGY_TOLERANCE),
        changes=(*widened, *adapted.changes),
    )


def embedding_network(
    probe: Array, *, metric: Metric, max_dim: int, seed: int, columns: Columns | None = None
) -> Exposed:
    """A network without logits whose only representation, `EMBEDDING`, is its `[B, D]` input, reduced.

    Args:
        probe: `[n >= 1, D]` vectors, of a dtype in `softkin.manifest.INPUT_DTYPES`; they are cast to float32.
        metric: of the representation.
        max_dim: wider vectors are projected to this many numbers.
        seed: of the projection.
        columns: what vectors are standardised by; None: they stay as they are.

    Raises:
        InvalidInputError: one number a row has no direction for cosine.
    """
    dim = probe.shape[1]
    elem_type = helper.np_dtype_to_tensor_dtype(probe.dtype)
    graph = helper.make_graph([], "embedding", [helper.make_tensor_value_info(INPUTS, elem_type, ["batch", dim])], [])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    g = GraphBuilder("expose")
    add_representation(g, INPUTS, EMBEDDING, probe, metric=metric, max_dim=max_dim, seed=seed, columns=columns)
    reducer = after_columns(columns, describe_reducer(dim, max_dim, seed))
    layer = ExposedLayer(
        name=EMBEDDING, tensor=INPUTS, width=dim, dim=min(dim, max_dim), reducer=reducer, is_input=True
    )
    return Exposed(model=_serialised(network, g, [layer]), layers=(layer,))


def _find_layers(proto: onnx.ModelProto, layers: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model, in which its input is a tensor too where a layer names it, and the tensors by the layers' names."""
    entries = {i.name for i in real_inputs(proto.graph)}
    tensors: dict[str, str] = {}
    for name in layers:
        is_input = name in entries
        tensor = copied_input(name) if is_input else find_tensor(proto, name, "layers")
        if tensor in tensors.values():
            which = "the input" if is_input else f"tensor {tensor!r}"
            raise InvalidInputError("layers", f"{name!r} is {which}, which is among them already; leave it out")
        if is_input:
            proto = with_copied_input(proto, name)
        tensors[name] = tensor
    return proto, tensors


def _alike(a: Array, b: Array) -> bool:
    return a.size == b.size and np.array_equal(a.reshape(-1), b.reshape(-1))


def _is_ours(name: str) -> bool:
    """Whether a tensor of this name is, or may be, added to the model."""
    return name in (LOGITS, BOUNDARY, MASSES, *OUTPUTS) or name.startswith(OUR_PREFIXES)


def _refuse_not_finite(field: str, name: str, value: Array) -> None:
    with np.errstate(over="ignore"):  # refused below, by name
        narrow = value.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(narrow).reshape(len(value), -1).all(axis=1))
    if len(bad):
        raise InvalidInputError(
            field, f"{name!r} has NaN or infinity on {len(bad)} of {len(value)} rows tried; name another tensor"
        )


def _refuse_constant(name: str, z: Array) -> None:
    """Refuse a layer that is the same for every row; one of zeros, as dead units are, is known for that later."""
    if len(z) > 1 and z[0].any() and (z == z[0]).all():
        raise InvalidInputError(
            "layers",
            f"{name!r} is the same for all {len(z)} rows tried, so it cannot tell rows apart; name another tensor",
        )


def _refuse_equal_means(name: str, maps: Array, means: Array, max_side: int) -> None:
    """Refuse maps that differ between rows though their means do not: those of attention each sum to 1."""

    def spread(z: Array) -> float:
        return float(np.ptp(z.astype(np.float64), axis=0).max() / max(np.abs(z).max(), SMALLEST_NORM))

    if spread(means) <= EQUAL_MEANS and spread(maps) > 100 * EQUAL_MEANS:
        raise InvalidInputError(
            "max_side",
            f"got {max_side} for {name!r}, {axes_of(maps)}, whose means over so few rows and columns are the same for "
            "every input, as those of attention weights are; 0 keeps them whole, or name another tensor",
        )


def _add_logits(g: GraphBuilder, source: str, kind: OutputKind, axes: tuple[int, ...]) -> None:
    """Nodes from an output `[B, *axes]` to float32 `logits` `[B, C]`: what `read_output` gives, as logits."""
    logits = g.op("Cast", [source], to=TensorProto.FLOAT)
    if len(axes) != 1:
        logits = g.op("Flatten", [logits], axis=1)
    single = np.prod(axes) == 1
    if single and kind == "probabilities":
        logits = g.op("Concat", [g.op("Sub", [g.constant(1.0), logits]), logits], axis=1)
    elif single:
        logits = g.op("Mul", [g.op("Concat", [g.op("Neg", [logits]), logits], axis=1), g.constant(0.5)])
    if kind == "probabilities":
        logits = g.op("Log", [g.op("Max", [logits, g.constant(float(np.finfo(np.float32).tiny))])])
    g.nodes.append(helper.make_node("Identity", [logits], [LOGITS], name=f"expose/{LOGITS}"))


def _serialised(
    network: onnx.ModelProto,
    g: GraphBuilder,
    layers: Sequence[ExposedLayer],
    *,
    num_logits: int = 0,
) -> bytes:
    graph = network.graph
    graph.node.extend(g.nodes)
    graph.initializer.extend(g.initializers)
    shapes = {LOGITS: num_logits} if num_logits else {}
    shapes |= {representation_output(layer.name): layer.dim for layer in layers}
    del graph.output[:]
    graph.output.extend(helper.make_tensor_value_info(k, TensorProto.FLOAT, ["batch", n]) for k, n in shapes.items())
    for key in [p for p in network.metadata_props if p.key.startswith("softkin.")]:
        network.metadata_props.remove(key)  # of the detector that the model was part of
    for layer in layers:
        network.metadata_props.add(key=reducer_key(layer.name), value=layer.reducer)
    refuse_too_large(graph)
    return bytes(network.SerializeToString())
