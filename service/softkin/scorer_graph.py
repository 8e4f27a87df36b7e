"""The scoring graph in plain ONNX operators: representations -> class masses, or -> nearest rows.

Soft-nearest-neighbour mass is attention over the bank. The graph is unrolled, without Loop, Scan or If: each chunk of
the bank is a Gemm of its own whose initializer lies in bank.safetensors, so the runtime prepacks it, memory is bounded
by one chunk whatever the size of the bank, and a run can be stopped between chunks. Each chunk hands exactly one
tensor on: with two, the runtime's depth-first order keeps every chunk's logits alive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from softkin.bank import TILE_ROWS, Bank, LayerBank
from softkin.tensor_file import TensorFile

OPSET = 21
OLDEST_OPSET = 18
"""The first in which every operator takes its axes the way the graph gives them."""
IR_VERSION = 10
CHUNK_ROWS = 8192
LARGE_CHUNK_ROWS = 16384
LARGE_BANK_ROWS = 1_000_000
MERGE_MATRIX_SIZE = 1 << 18
"""Up to this many tiles x classes, one product with a one-hot matrix merges tiles to classes; above, folds do."""
FOLD = 32
"""Tiles that one merge step sums; few enough that classes of very different sizes waste little padding."""
MAX_EXPONENT = 80.0
"""exp(+-80) and sums of millions of them stay inside float32's normal range."""
LOWEST = float(np.float32(-3e38))
"""Stands for minus infinity where a real one would turn subtractions into NaN."""


@dataclass
class GraphBuilder:
    """Collects nodes and initializers under names that do not clash with a model's own."""

    prefix: str = "softkin"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    _constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def op(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        return self.ops(op_type, inputs, 1, **attributes)[0]

    def ops(self, op_type: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Append a node and return its outputs' names."""
        names = [f"{self.prefix}/{op_type}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: NDArray[np.generic] | float | Sequence[int]) -> str:
        """Name of an initializer holding `value`: float32 for a float, int64 for a list."""
        array = np.asarray(value, np.float32 if isinstance(value, float) else None)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}/constant_{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def external(self, name: str, shape: Sequence[int], file: str, offset: int) -> str:
        """Name of a float32 initializer whose data lie in `file` at `offset`."""
        tensor = TensorProto(name=f"{self.prefix}/{name}", data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * int(np.prod(shape, dtype=np.int64))
        for key, value in {"location": file, "offset": str(offset), "length": str(length)}.items():
            tensor.external_data.add(key=key, value=value)
        self.initializers.append(tensor)
        return tensor.name


def is_bounded(layer: LayerBank) -> bool:
    """True where logits provably stay in float32's exponential range, so that no maximum need be subtracted.

    Rows and queries of cosine layers have unit norm: |z.b / T| <= 1 / T. Row weights move a logit by log w; offsets
    carry that, and padding is meant to underflow to 0.
    """
    if layer.metric != "cosine":
        return False
    real = layer.rows[:, -1] > -1e29
    largest = float(np.abs(layer.rows[real, -1]).max(initial=0.0))
    return layer.scale * (1.0 + largest) <= MAX_EXPONENT


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """Builds one layer's part of the graph."""

    graph: GraphBuilder
    name: str
    layer: LayerBank
    bank: Bank
    file: str
    offset: int
    chunk_rows: int
    bounded: bool
    """See `is_bounded`."""

    def masses(self, z_BD: str) -> str:
        """Name of `[B, C]` class masses for representations `z_BD` (normalised already where the metric says so)."""
        g, bounded = self.graph, self.bounded
        query, shift = self._query(z_BD)
        tiles = []
        for logits in self._chunks(query):
            tiled = g.op("Reshape", [logits, g.constant(np.array([0, -1, TILE_ROWS], np.int64))])
            tiles.append(self._sum_exp(tiled) if bounded else self._log_sum_exp(tiled))
        mass = g.op("Concat", tiles, axis=1) if len(tiles) > 1 else tiles[0]
        labels = self.bank.tile_labels
        if bounded and len(labels) * self.bank.num_classes <= MERGE_MATRIX_SIZE:
            one_hot = (labels[:, None] == np.arange(self.bank.num_classes)).astype(np.float32)
            mass, labels = g.op("MatMul", [mass, g.constant(one_hot)]), np.arange(self.bank.num_classes, dtype=np.int32)
        while len(labels) > self.bank.num_classes:
            groups, labels = _fold_groups(labels)
            mass = self._fold(mass, groups, bounded)
        if bounded:
            mass = g.op("Log", [mass])
        return g.op("Add", [mass, shift])

    def nearest(self, z_BD: str, k: str) -> tuple[str, str]:
        """Names of `[B, K]` log mass contributions, largest first, and of the tiled row numbers they come from.

        Args:
            z_BD: representations.
            k: name of an int64 `[1]` tensor: how many rows; at most the number of real rows.
        """
        g = self.graph
        query, shift = self._query(z_BD)
        values, rows = [], []
        for i, logits in enumerate(self._chunks(query)):
            at_most = g.op("Min", [k, g.constant(np.array([self._chunk_length(i)], np.int64))])
            top, where = g.ops("TopK", [logits, at_most], 2, axis=1, sorted=0)
            values.append(top)
            rows.append(g.op("Add", [where, g.constant(np.array(i * self.chunk_rows, np.int64))]))
        value = g.op("Concat", values, axis=1) if len(values) > 1 else values[0]
        row = g.op("Concat", rows, axis=1) if len(rows) > 1 else rows[0]
        top, where = g.ops("TopK", [value, k], 2, axis=1)
        return g.op("Add", [top, shift]), g.op("GatherElements", [row, where], axis=1)

    def _query(self, z_BD: str) -> tuple[str, str]:
        """Scaled queries with a column of ones for the offsets, and the query-only term of the logits `[B, 1]`."""
        g, layer = self.graph, self.layer
        scale = g.constant(float(layer.scale))
        if layer.metric == "cosine":
            shift = g.constant(np.full((1, 1), -1.0 / layer.temperature, np.float32))
        else:
            z_BD = g.op("Sub", [z_BD, g.constant(layer.center)])
            squared = g.op("ReduceSumSquare", [z_BD, g.constant(np.array([1], np.int64))], keepdims=1)
            shift = g.op("Mul", [squared, g.constant(float(-1.0 / layer.temperature))])
        ones = g.op("Pad", [z_BD, g.constant(np.array([0, 0, 0, 1], np.int64)), g.constant(1.0)])
        return g.op("Mul", [ones, scale]), shift

    def _chunk_length(self, i: int) -> int:
        return min(self.chunk_rows, len(self.bank.labels) - i * self.chunk_rows)

    def _chunks(self, query: str) -> list[str]:
        """Logits `[B, chunk]` of every chunk, up to the query-only term."""
        g, width, n = self.graph, self.layer.dim + 1, len(self.bank.labels)
        outputs = []
        for i in range(-(-n // self.chunk_rows)):
            start = i * self.chunk_rows
            rows = g.external(
                f"{self.name}/rows_{i}", [self._chunk_length(i), width], self.file, self.offset + 4 * start * width
            )
            outputs.append(g.op("Gemm", [query, rows], transB=1))
        return outputs

    def _sum_exp(self, x_BTR: str) -> str:
        g = self.graph
        return g.op("ReduceSum", [g.op("Exp", [x_BTR]), g.constant(np.array([2], np.int64))], keepdims=0)

    def _log_sum_exp(self, x_BTR: str) -> str:
        # Spelt out: onnxruntime's ReduceLogSumExp is scalar on CPU.
        g = self.graph
        axis = g.constant(np.array([2], np.int64))
        top = g.op("ReduceMax", [x_BTR, axis], keepdims=1)
        total = g.op("ReduceSum", [g.op("Exp", [g.op("Sub", [x_BTR, top])]), axis], keepdims=0)
        return g.op("Add", [g.op("Log", [total]), g.op("Squeeze", [top, axis])])

    def _fold(self, mass_BT: str, groups: NDArray[np.int64], bounded: bool) -> str:
        g = self.graph
        nothing = g.constant(0.0 if bounded else LOWEST)
        padded = g.op("Pad", [mass_BT, g.constant(np.array([0, 0, 0, 1], np.int64)), nothing])
        grouped = g.op("Gather", [padded, g.constant(groups)], axis=1)
        if bounded:
            return g.op("ReduceSum", [grouped, g.constant(np.array([2], np.int64))], keepdims=0)
        return self._log_sum_exp(grouped)


def _fold_groups(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Groups of up to `FOLD` neighbours of equal label, filled with the index past the end, and the groups' labels."""
    groups, group_labels = [], []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        width = min(FOLD, int(np.bincount(labels).max()))
        for start in range(0, len(members), width):
            part = members[start : start + width]
            groups.append(np.concatenate([part, np.full(width - len(part), len(labels))]))
            group_labels.append(label)
    return np.stack(groups).astype(np.int64), np.array(group_labels, np.int32)


def chunk_rows_for(num_rows: int) -> int:
    """Rows per chunk that measured fastest; a multiple of the tile."""
    return LARGE_CHUNK_ROWS if num_rows >= LARGE_BANK_ROWS else CHUNK_ROWS


def representation_output(layer: str) -> str:
    """Name of the network output that holds a layer's representation."""
    return f"representation.{layer}"


def stack_masses(g: GraphBuilder, layers: Sequence[LayerGraph]) -> str:
    """Name of `[B, L, C]` class masses, from the network's representations."""
    axis = g.constant(np.array([1], np.int64))
    masses = [g.op("Unsqueeze", [layer.masses(representation_output(layer.name)), axis]) for layer in layers]
    return g.op("Concat", masses, axis=1)


def layer_graph(
    g: GraphBuilder, bank: Bank, name: str, file: Path, *, bounded: bool, chunk_rows: int | None = None
) -> LayerGraph:
    """The part of the graph for one layer of a bank stored in `file`; the bank's rows themselves are not needed."""
    return LayerGraph(
        graph=g,
        name=name,
        layer=bank.layers[name],
        bank=bank,
        file=file.name,
        offset=TensorFile(file).offset(f"rows.{name}"),
        chunk_rows=chunk_rows or chunk_rows_for(len(bank.labels)),
        bounded=bounded,
    )
