"""What follows the class masses, in plain ONNX operators: nonconformity, p-values, predicted class.

The same as mass.py, nonconformity.py and conformal.py compute in NumPy, in float64 too: given the same masses, the two
differ by rounding alone. Shapes: B rows, L layers, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from softkin.conformal import SurpriseLines
from softkin.graph_builder import GraphBuilder
from softkin.mass import NEGLIGIBLE_MASS
from softkin.nonconformity import CENTER, CLASS_PARTS, SCALE, TAIL_FROM, TAIL_WEIGHT, TAILS, Nonconformity, Part

Floats = NDArray[np.float64]

OUTPUTS = ("outlier_score", "p_value", "class_p_values", "predicted_class", "credibility", "confidence")
"""Names of what `DetectorGraph.outputs` yields."""


def count_below(g: GraphBuilder, scores_N: str, table: Floats) -> str:
    """Name of int64 `[N]` `#{i : table_i < score}` for float64 scores `[N]`, never NaN.

    A binary search without branches: one pass per bit of the answer, whatever the score. The table is filled up with
    +inf, which is below nothing, to one less than a power of two; so no probe leaves it.

    Args:
        g: where to add the nodes.
        scores_N: name of the scores; +inf is allowed.
        table: `[n]` sorted ascending, n >= 1.
    """
    bits = len(table).bit_length()
    padded = np.full(2**bits - 1, np.inf)
    padded[: len(table)] = table
    count_N = g.op("Expand", [g.constant(np.array(0, np.int64)), g.op("Shape", [scores_N])])
    for bit in reversed(range(bits)):
        step = 1 << bit
        probe_N = _look_up(g, padded, g.op("Add", [count_N, g.constant(np.array(step - 1, np.int64))]))
        below_N = g.op("Less", [probe_N, scores_N])
        count_N = g.op("Where", [below_N, g.op("Add", [count_N, g.constant(np.array(step, np.int64))]), count_N])
    return count_N


def p_values(g: GraphBuilder, scores: str, calibration: Floats) -> str:
    """Name of `softkin.conformal.p_values` of float64 scores of any shape; exact, ties included."""
    n = len(calibration)
    below_N = count_below(g, _flat(g, scores), calibration)
    at_least_N = g.op("Sub", [g.constant(np.array(n + 1, np.int64)), below_N])
    p_N = g.op("Div", [g.op("Cast", [at_least_N], to=TensorProto.DOUBLE), g.constant(np.array(n + 1.0))])
    return g.op("Reshape", [p_N, g.op("Shape", [scores])])


def tail_surprise(g: GraphBuilder, scores: str, reference: Floats) -> str:
    """Name of `softkin.conformal.tail_surprise` of finite float64 scores of any shape.

    The number of reference scores below the score picks the line.
    """
    scores_N, lines = _flat(g, scores), SurpriseLines.through(reference)
    line_N = count_below(g, scores_N, reference)
    start_N, slope_N, height_N = (_look_up(g, t, line_N) for t in (lines.starts, lines.slopes, lines.heights))
    surprise_N = g.op("Add", [g.op("Mul", [slope_N, g.op("Sub", [scores_N, start_N])]), height_N])
    return g.op("Reshape", [surprise_N, g.op("Shape", [scores])])


def _look_up(g: GraphBuilder, table: Floats, index_N: str) -> str:
    """Numbers of a table `[n]`, one for each index. By Gather, which is for whole rows, it takes ten times as long."""
    return g.op("GatherElements", [g.constant(table), index_N], axis=0)


def _flat(g: GraphBuilder, scores: str) -> str:
    return g.op("Reshape", [scores, g.constant([-1])])


@dataclass(frozen=True, kw_only=True)
class DetectorGraph:
    """Builds the graph from class masses to what a verdict needs.

    Args:
        graph: where to add the nodes.
        nonconformity: the form, its weights and its references.
        outlier_scores: `[n]` sorted ascending: calibration of `p_value`.
        true_class_scores: `[n]` sorted ascending: calibration of `class_p_values`.
    """

    graph: GraphBuilder
    nonconformity: Nonconformity
    outlier_scores: Floats
    true_class_scores: Floats

    def outputs(self, masses_BLC: str, logits_BC: str | None, boundary_BC: str | None = None) -> dict[str, str]:
        """Tensor names by the names in `OUTPUTS`: float64 `[B]` (`class_p_values`: `[B, C]`), classes int32 `[B]`.

        Args:
            masses_BLC: name of float32 class masses.
            logits_BC: name of the network's logits; None for bare embeddings.
            boundary_BC: name of the network's distances to its decision boundaries; None where it has none.
        """
        g = self.graph
        a_BC = self._nonconformity({"masses": masses_BLC, "logits": logits_BC, "boundary": boundary_BC})
        if logits_BC is not None:
            predicted = g.op("ArgMax", [self._comparable(logits_BC)], axis=1, keepdims=1)
        else:
            predicted = g.op("ArgMin", [a_BC], axis=1, keepdims=1)
        score = g.op("Squeeze", [g.op("GatherElements", [a_BC, predicted], axis=1), self._axes(1)])
        class_p = p_values(g, a_BC, self.true_class_scores)
        return {
            "outlier_score": score,
            "p_value": p_values(g, score, self.outlier_scores),
            "class_p_values": class_p,
            "predicted_class": g.op("Cast", [g.op("Squeeze", [predicted, self._axes(1)])], to=TensorProto.INT32),
            "credibility": g.op("ReduceMax", [class_p, self._axes(1)], keepdims=0),
            "confidence": self._confidence(class_p, score),
        }

    @property
    def _num_classes(self) -> int:
        return len(self.nonconformity.class_weights)

    def _axes(self, *axes: int) -> str:
        return self.graph.constant(np.array(axes, np.int64))

    def _double(self, x: str) -> str:
        return self.graph.op("Cast", [x], to=TensorProto.DOUBLE)

    def _nonconformity(self, outputs: dict[str, str | None]) -> str:
        """`[B, C]`; +inf for rows on which the network overflows: NaN would compare as nothing at all."""
        g, zero = self.graph, self.graph.constant(np.array(0.0))
        doubles = {name: self._double(tensor) for name, tensor in outputs.items() if tensor is not None}
        axes = {name: (1, 2) if name == "masses" else (1,) for name in doubles}
        finite_B, *others = [self._finite(tensor, *axes[name]) for name, tensor in doubles.items()]
        for other in others:
            finite_B = g.op("And", [finite_B, other])
        # Rows that are not finite are computed as zeros, so that no infinity meets another on the way.
        finite = {
            name: g.op("Where", [g.op("Unsqueeze", [finite_B, self._axes(*axes[name])]), tensor, zero])
            for name, tensor in doubles.items()
        }
        finite_B1 = g.op("Unsqueeze", [finite_B, self._axes(1)])
        form = self.nonconformity.form
        if form != "joint":
            a_BC = self._part(form, finite)
        else:
            terms = [self._surprise(p, finite) for p in self.nonconformity.parts]
            squares = [g.op("Mul", [term, term]) for term in terms]
            total = squares[0]
            for square in squares[1:]:
                total = g.op("Add", [total, square])
            a_BC = g.op("Sqrt", [total])
        return g.op("Where", [finite_B1, a_BC, g.constant(np.array(np.inf))])

    def _finite(self, x: str, *axes: int) -> str:
        """bool `[B]`: no NaN, which is less than nothing, and no infinity along `axes`."""
        g = self.graph
        below = g.op("Less", [g.op("Abs", [x]), g.constant(np.array(np.inf))])
        as_int = g.op("Cast", [below], to=TensorProto.INT32)
        lowest = g.op("ReduceMin", [as_int, self._axes(*axes)], keepdims=0)
        return g.op("Cast", [lowest], to=TensorProto.BOOL)

    def _surprise(self, part: Part, outputs: dict[str, str]) -> str:
        """`[B, C]`: one part on the scale of all."""
        g = self.graph
        surprise = tail_surprise(g, self._part(part, outputs), self.nonconformity.references[part])
        if part not in TAILS:
            return surprise
        beyond = g.op("Max", [g.op("Sub", [surprise, g.constant(np.array(TAIL_FROM))]), g.constant(np.array(0.0))])
        return g.op("Mul", [g.constant(np.array(TAIL_WEIGHT)), beyond])

    def _part(self, part: Part, outputs: dict[str, str]) -> str:
        """`[B, C]`: one part on its own scale."""
        g, nonconformity = self.graph, self.nonconformity
        if part in CLASS_PARTS:
            references = nonconformity.references
            center, scale = (g.constant(references[key.format(part)]) for key in (CENTER, SCALE))
            return g.op("Div", [g.op("Sub", [self._part(CLASS_PARTS[part], outputs), center]), scale])
        m_BLC, layer_weights = outputs["masses"], nonconformity.layer_weights
        layers = np.arange(len(layer_weights))
        hidden = layers[:-1] if len(layers) > 1 else layers
        match part:
            case "posterior":
                return self._posterior(m_BLC, layer_weights)
            case "posterior_hidden":
                return self._posterior(self._layers(m_BLC, hidden), layer_weights[hidden])
            case "density":
                return self._density(m_BLC, layer_weights)
            case "density_hidden" | "density_hidden_tail":
                return self._density(self._layers(m_BLC, hidden), layer_weights[hidden])
            case "density_last":
                return self._density(self._layers(m_BLC, layers[-1:]), np.ones(1))
            case "boundary_distance":
                return g.op("Neg", [outputs["boundary"]])
            case "energy":
                energy_B1 = g.op("Neg", [self._log_sum_exp(outputs["logits"], 1)])
                return g.op("Add", [energy_B1, g.constant(np.zeros((1, self._num_classes)))])
            case _:
                raise AssertionError(f"no such part: {part}")

    def _layers(self, m_BLC: str, chosen: NDArray[np.int64]) -> str:
        return self.graph.op("Gather", [m_BLC, self.graph.constant(chosen)], axis=1)

    def _posterior(self, m_BLC: str, layer_weights_L: Floats) -> str:
        """As `mass.posterior`."""
        return self._sum_layers(self._posterior_loss(m_BLC), layer_weights_L)

    def _density(self, m_BLC: str, layer_weights_L: Floats) -> str:
        """As `mass.density`."""
        log_class_weights = self.graph.constant(np.log(self.nonconformity.class_weights))
        return self._sum_layers(self.graph.op("Sub", [log_class_weights, m_BLC]), layer_weights_L)

    def _posterior_loss(self, m_BLC: str) -> str:
        """`-log softmax_j m(j, x)`, as `mass.posterior` takes it."""
        g, zero = self.graph, self.graph.constant(np.array(0.0))
        above_BLC = g.op("Sub", [g.op("ReduceMax", [m_BLC, self._axes(2)], keepdims=1), m_BLC])
        largest_BL1 = g.op("ArgMax", [m_BLC], axis=2, keepdims=1)
        is_largest_BLC = g.op("Equal", [largest_BL1, g.constant(np.arange(self._num_classes))])
        others_BLC = g.op("Where", [is_largest_BLC, zero, g.op("Exp", [g.op("Neg", [above_BLC])])])
        others_BL1 = g.op("ReduceSum", [others_BLC, self._axes(2)], keepdims=1)
        none_BL1 = g.op("Less", [others_BL1, g.constant(np.array(NEGLIGIBLE_MASS))])
        sum_BL1 = g.op("Add", [g.constant(np.array(1.0)), g.op("Where", [none_BL1, zero, others_BL1])])
        return g.op("Add", [g.op("Log", [sum_BL1]), above_BLC])

    def _sum_layers(self, x_BLC: str, weights_L: Floats) -> str:
        g = self.graph
        weighted = g.op("Mul", [x_BLC, g.constant(np.asarray(weights_L, np.float64)[:, None])])
        return g.op("ReduceSum", [weighted, self._axes(1)], keepdims=0)

    def _log_sum_exp(self, x: str, axis: int) -> str:
        """Along `axis`, which stays with length 1; finite x."""
        g = self.graph
        top = g.op("ReduceMax", [x, self._axes(axis)], keepdims=1)
        total = g.op("ReduceSum", [g.op("Exp", [g.op("Sub", [x, top])]), self._axes(axis)], keepdims=1)
        return g.op("Add", [g.op("Log", [total]), top])

    def _comparable(self, logits_BC: str) -> str:
        """Logits on which ArgMax gives what NumPy's argmax gives: the first NaN, where there is one."""
        g = self.graph
        capped = g.op("Min", [self._double(logits_BC), g.constant(np.array(np.finfo(np.float64).max))])
        return g.op("Where", [g.op("IsNaN", [logits_BC]), g.constant(np.array(np.inf)), capped])

    def _confidence(self, class_p_BC: str, score_B: str) -> str:
        g, one = self.graph, self.graph.constant(np.array(1.0))
        if self._num_classes == 1:
            return g.op("Expand", [one, g.op("Shape", [score_B])])
        top, _ = g.ops("TopK", [class_p_BC, g.constant(np.array([2], np.int64))], 2, axis=1)
        second = g.op("Gather", [top, g.constant(np.array(1, np.int64))], axis=1)
        return g.op("Sub", [one, second])
