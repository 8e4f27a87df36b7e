"""The scoring graph in plain ONNX operators: representations -> class masses and nearest rows.

Soft-nearest-neighbour mass is attention over the bank. The graph is unrolled, without Loop, Scan or If: each chunk of
the bank is a matrix product of its own whose initializer lies in bank.safetensors, so the runtime prepacks it, memory
is bounded by one chunk whatever the size of the bank, and a run can be stopped between chunks. Nodes stand in the order
in which they should run, chunk by chunk, and the session keeps to it: the runtime's own order keeps every chunk's
logits alive as soon as a chunk hands on two tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from softkin.bank import PADDING_OFFSET, Bank, LayerBank
from softkin.chunks import Chunk
from softkin.folds import Folds, plan_folds
from softkin.graph_builder import GraphBuilder
from softkin.precision import QUERY_LEVELS, QUERY_ZERO_POINT
from softkin.tensor_file import TensorFile

OPSET = 21
OLDEST_OPSET = 18
"""The first in which every operator takes its axes the way the graph gives them."""
IR_VERSION = 10
MERGE_MATRIX_SIZE = 1 << 18
"""Up to this many tiles x classes, one product with a one-hot matrix merges tiles to classes; above, folds do."""
LONG_TILE_ROWS = 32
"""From this tile size on LogSoftmax is faster than the operators it replaces; for small tiles its calls cost more."""
MERGE_CHUNKS = 16
"""Chunks whose nearest rows are merged at a time."""
MAX_EXPONENT, MAX_LOG_SUM = 80.0, 88.0
"""exp(+-80) stays inside float32's normal range, and so does a sum that is at most exp(88)."""
FEW_QUERIES = 8
"""Up to so many queries at a time, int8 rows get their scales in another way: see `_integer_logits`."""
SMALLEST_STEP = 1e-30
"""Stands in for the largest number of a query that is all zeros."""
LOWEST = float(np.float32(-3e38))
"""Stands for minus infinity where a real one would turn subtractions into NaN."""


def is_bounded(layer: LayerBank) -> bool:
    """True where sums of exponentials provably stay in float32's range, so that no maximum need be subtracted.

    Rows and queries of cosine layers have unit norm: |z.b / T| <= 1 / T. Row weights move a logit by log w; offsets
    carry that, and padding is meant to underflow to 0. Rounded rows and queries are a little longer than 1.
    """
    if layer.metric != "cosine":
        return False
    offsets = layer.row_offsets()
    largest = float(np.abs(offsets[offsets > PADDING_OFFSET]).max(initial=0.0))
    longest = 1.0 if layer.precision == "float32" else 1.1
    exponent = layer.scale * (longest + largest)
    return exponent <= MAX_EXPONENT and exponent + math.log(len(offsets)) <= MAX_LOG_SUM


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """Builds one layer's part of the graph.

    Args:
        graph: where to add the nodes.
        name: of the layer.
        layer: its bank; of the rows only the offsets are read, and what they are stored in.
        bank: the whole bank.
        file: the safetensors file that holds it.
        bounded: see `is_bounded`.
        chunks: which rows, cut into matrix products.
        integer: multiply int8 rows as integers, which CPUs do; elsewhere they become float32 in the graph.
    """

    graph: GraphBuilder
    name: str
    layer: LayerBank
    bank: Bank
    file: TensorFile
    bounded: bool
    chunks: Sequence[Chunk]
    integer: bool

    def masses(self, z_BD: str, at_most: Callable[[int], str] | None = None) -> tuple[str, str, str]:
        """Names of `[B, C]` class masses and of the nearest rows, for `[B, D]` representations.

        Args:
            z_BD: representations, normalised already where the metric says so.
            at_most: gives for any n the name of an int64 `[1]` tensor: how many nearest rows are wanted, from 0 to all
                the real rows here, but at most n; n = 0 stands for no bound. None: nearest rows are not looked for.

        Returns:
            `[B, C]` masses; `[B, K]` log mass contributions, largest first; `[B, K]` tiled row numbers they come from.
            The last two are empty names without `at_most`.
        """
        g = self.graph
        query, shift = self._query(z_BD)
        tiles, labels = [], []
        best: list[_Best] = []
        for i, chunk in enumerate(self.chunks):
            logits = self._logits(query, i, chunk)
            if at_most is not None:
                top, where = g.ops("TopK", [logits, at_most(len(chunk))], 2, axis=1, sorted=0)
                row = g.op("Add", [where, g.constant(np.array(chunk.start, np.int64))])
                best.append(_Best(top, row, len(chunk), 0))
                # Sixteen merge to one, sixteen of those again: what waits hardly grows with the number of chunks,
                # whatever order the runtime takes them in.
                while len(best) >= MERGE_CHUNKS and best[-MERGE_CHUNKS].merges == best[-1].merges:
                    best[-MERGE_CHUNKS:] = [self._merge_best(best[-MERGE_CHUNKS:], at_most)]
            # After TopK, so that the runtime can write the log softmaxes where the logits were.
            tiles.append(self._sum_exp(logits, chunk) if self.bounded else self._log_sum_exp_of_tiles(logits, chunk))
            labels.append(self.bank.labels[chunk.start : chunk.stop : chunk.tile_rows])
        mass = self._merge(self._join(tiles), np.concatenate(labels), shift)
        if at_most is None:
            return mass, "", ""
        nearest = self._merge_best(best, lambda _: at_most(0))
        return mass, g.op("Add", [nearest.logits, shift]), nearest.rows

    def _merge_best(self, parts: list[_Best], at_most: Callable[[int], str]) -> _Best:
        covered = sum(part.covered for part in parts)
        top, where = self.graph.ops("TopK", [self._join([p.logits for p in parts]), at_most(covered)], 2, axis=1)
        rows = self.graph.op("GatherElements", [self._join([p.rows for p in parts]), where], axis=1)
        return _Best(top, rows, covered, parts[0].merges + 1)

    def _join(self, parts: list[str]) -> str:
        return self.graph.op("Concat", parts, axis=1) if len(parts) > 1 else parts[0]

    def _query(self, z_BD: str) -> tuple[_Query, str]:
        """What the chunks multiply, and the query-only term of the logits `[B, 1]`."""
        g, layer = self.graph, self.layer
        axis = g.constant([1])
        per_temperature = g.constant(float(-1.0 / layer.temperature))
        if layer.metric == "cosine":
            shift = per_temperature
        else:
            z_BD = g.op("Sub", [z_BD, g.constant(layer.center)])
            shift = g.op("Mul", [g.op("ReduceSumSquare", [z_BD, axis], keepdims=1), per_temperature])
        scale = g.constant(float(layer.scale))
        if layer.precision != "int8" or not self.integer:
            ones = g.op("Pad", [z_BD, g.constant([0, 0, 0, 1]), g.constant(1.0)])
            return _Query(g.op("Mul", [ones, scale])), shift
        # One scale per row: with one for the batch (DynamicQuantizeLinear) a score would depend on its batch mates.
        largest = g.op("Max", [g.op("ReduceMax", [g.op("Abs", [z_BD]), axis], keepdims=1), g.constant(SMALLEST_STEP)])
        levels = g.op("Round", [g.op("Mul", [g.op("Div", [z_BD, largest]), g.constant(float(QUERY_LEVELS))])])
        values = g.op("Cast", [g.op("Add", [levels, g.constant(float(QUERY_ZERO_POINT))])], to=TensorProto.UINT8)
        # The step that keeps the norm, see precision.py.
        norm = g.op("ReduceL2", [z_BD, axis], keepdims=1)
        step = g.op("Div", [norm, g.op("Max", [g.op("ReduceL2", [levels, axis], keepdims=1), g.constant(1.0)])])
        size = g.op("Min", [g.op("Size", [values]), g.constant(np.array(1, np.int64))])
        one = g.op("Cast", [size], to=TensorProto.FLOAT)
        return _Query(values, g.op("Mul", [step, scale]), one, self._shape_of_scales(values)), shift

    def _shape_of_scales(self, query: str) -> str:
        """Shape in which the integer product gets the rows' scales: three dimensions for few queries, two for more."""
        g = self.graph
        few = g.op("LessOrEqual", [g.op("Shape", [query], start=0, end=1), g.constant([FEW_QUERIES])])
        return g.op(
            "Slice", [g.constant([1, 1, -1]), g.op("Where", [few, g.constant([0]), g.constant([1])]), g.constant([3])]
        )

    def _logits(self, query: _Query, i: int, chunk: Chunk) -> str:
        """`[B, chunk]` logits up to the query-only term."""
        g, layer = self.graph, self.layer
        rows = self._stored("rows", i, chunk)
        if layer.precision == "float32":
            return g.op("Gemm", [query.values, rows], transB=1)
        if layer.precision == "int8" and self.integer:
            return self._integer_logits(query, i, chunk, rows)
        rows = g.op("Cast", [rows], to=TensorProto.FLOAT)
        column = g.constant([-1, 1])
        if layer.precision == "int8":
            rows = g.op("Mul", [rows, g.op("Reshape", [self._stored("scales", i, chunk), column])])
        rows = g.op("Concat", [rows, g.op("Reshape", [self._stored("offsets", i, chunk), column])], axis=1)
        return g.op("Gemm", [query.values, rows], transB=1)

    def _integer_logits(self, query: _Query, i: int, chunk: Chunk, rows: str) -> str:
        g, layer = self.graph, self.layer
        zero_point = g.constant(np.array(QUERY_ZERO_POINT, np.uint8))
        products = g.op("MatMulInteger", [query.values, g.op("Transpose", [rows], perm=[1, 0]), zero_point])
        # onnxruntime fuses a product of two scales into that of the matrices. A scale per query it would apply on a
        # single thread, and a constant it folds away before it looks for such a pair: so the pair is the rows' scales
        # and a 1 that it cannot see through. It multiplies the pair on a single thread too, row by row, which takes
        # longer than the matrix product of one query. Scales of three dimensions it applies after the product instead,
        # again on one thread: cheap where queries are few.
        scales = g.op("Reshape", [self._stored("scales", i, chunk), query.scales_shape])
        products = g.op("Mul", [g.op("Cast", [products], to=TensorProto.FLOAT), g.op("Mul", [query.one, scales])])
        logits = g.op("Mul", [products, query.steps])
        logits = g.op("Reshape", [logits, g.constant([-1, len(chunk)])])
        if not layer.row_offsets(slice(chunk.start, chunk.stop)).any():
            return logits
        return g.op("Add", [logits, g.op("Mul", [self._stored("offsets", i, chunk), g.constant(float(layer.scale))])])

    def _stored(self, what: str, i: int, chunk: Chunk) -> str:
        """Name of the initializer that holds a chunk of one of the layer's arrays in the file."""
        array = f"{what}.{self.name}"
        dtype, shape = self.file.describe(array)
        width = int(np.prod(shape[1:], dtype=np.int64))
        return self.graph.external(
            f"{self.name}/{what}_{i}",
            dtype,
            [len(chunk), *shape[1:]],
            self.file.file.name,
            self.file.offset(array) + dtype.itemsize * chunk.start * width,
        )

    def _tiled(self, x_BN: str, chunk: Chunk) -> str:
        """`[B, tiles, rows of a tile]`, the shape spelt out: the runtime copies what has an unknown one."""
        shape = np.array([0, len(chunk) // chunk.tile_rows, chunk.tile_rows], np.int64)
        return self.graph.op("Reshape", [x_BN, self.graph.constant(shape)])

    def _sum_exp(self, x_BN: str, chunk: Chunk) -> str:
        g = self.graph
        exponentials = g.op("Exp", [self._tiled(x_BN, chunk)])
        return g.op("ReduceSum", [exponentials, g.constant([2])], keepdims=0)

    def _log_sum_exp_of_tiles(self, x_BN: str, chunk: Chunk) -> str:
        if chunk.tile_rows < LONG_TILE_ROWS:
            return self._log_sum_exp(self._tiled(x_BN, chunk))
        # Any row of a tile less its log softmax is the tile's log-sum-exp: one fused kernel instead of five passes.
        # The sum is rounded as that row's logit is: so it is the row nearest the center, which is never padding. The
        # logit of a row far from all others is so large that it would leave few digits of their mass.
        g = self.graph
        offsets = self.layer.row_offsets(slice(chunk.start, chunk.stop)).reshape(-1, chunk.tile_rows)
        nearest = g.constant(np.arange(0, len(chunk), chunk.tile_rows) + offsets.argmax(axis=1))
        row = g.op("Gather", [x_BN, nearest], axis=1)
        log_softmax = g.op("LogSoftmax", [self._tiled(x_BN, chunk)], axis=2)
        flat = g.op("Reshape", [log_softmax, g.constant([0, len(chunk)])])
        return g.op("Sub", [row, g.op("Gather", [flat, nearest], axis=1)])

    def _log_sum_exp(self, x_BTR: str) -> str:
        # Spelt out: onnxruntime's ReduceLogSumExp is scalar on CPU.
        g = self.graph
        axis = g.constant([2])
        top = g.op("ReduceMax", [x_BTR, axis], keepdims=1)
        total = g.op("ReduceSum", [g.op("Exp", [g.op("Sub", [x_BTR, top])]), axis], keepdims=0)
        return g.op("Add", [g.op("Log", [total]), g.op("Squeeze", [top, axis])])

    def _merge(self, mass_BT: str, labels: NDArray[np.int32], shift: str) -> str:
        """`[B, C]` class masses from those of tiles; minus infinity for classes of which there is no tile."""
        g, classes = self.graph, np.arange(self.bank.num_classes)
        if self.bounded and len(labels) * len(classes) <= MERGE_MATRIX_SIZE:
            one_hot = (labels[:, None] == classes).astype(np.float32)
            mass_BT = g.op("MatMul", [mass_BT, g.constant(one_hot)])
        elif not np.array_equal(labels, classes):
            mass_BT = self._fold(mass_BT, plan_folds(labels, len(classes)))
        if self.bounded:
            mass_BT = g.op("Log", [mass_BT])
        return g.op("Add", [mass_BT, shift])

    def _fold(self, mass_BT: str, folds: Folds) -> str:
        g = self.graph
        columns = g.op("Pad", [mass_BT, g.constant([0, 0, 0, 1]), g.constant(0.0 if self.bounded else LOWEST)])
        for step in folds.steps:
            sums = [self._sum(g.op("Gather", [columns, g.constant(groups)], axis=1)) for groups in step]
            if step is folds.steps[-1] and folds.last_gives_all:
                return self._join(sums)
            columns = self._join([columns, *sums])
        return g.op("Gather", [columns, g.constant(folds.where)], axis=1)

    def _sum(self, mass_BGW: str) -> str:
        if self.bounded:
            return self.graph.op("ReduceSum", [mass_BGW, self.graph.constant([2])], keepdims=0)
        return self._log_sum_exp(mass_BGW)


class _Best(NamedTuple):
    """The nearest rows of some chunks."""

    logits: str
    """`[B, K]`."""
    rows: str
    """`[B, K]` tiled row numbers."""
    covered: int
    """How many rows these are the nearest of."""
    merges: int
    """How often they have been merged."""


class _Query(NamedTuple):
    values: str
    """`[B, D+1]` float32 with a column of ones for the offsets, or `[B, D]` uint8."""
    steps: str = ""
    """`[B, 1]`: what a uint8 step is worth; empty for float32."""
    one: str = ""
    """A float32 1 that is no constant; empty for float32."""
    scales_shape: str = ""
    """See `_shape_of_scales`; empty for float32."""


def representation_output(layer: str) -> str:
    """Name of the network output that holds a layer's representation."""
    return f"representation.{layer}"


def stack_masses(g: GraphBuilder, masses: Sequence[str]) -> str:
    """Name of `[B, L, C]` class masses, from those of the layers."""
    axis = g.constant([1])
    return g.op("Concat", [g.op("Unsqueeze", [m, axis]) for m in masses], axis=1)
