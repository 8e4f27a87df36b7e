"""How few bank rows need an exact distance, if the error of the score must be proven and not hoped for.

    python benchmarks/partial_scoring.py                       synthetic clusters, 60,000 x 128
    python benchmarks/partial_scoring.py --bundle DIR --inliers FILE --outliers NAME=FILE ...

Each bound brackets the log mass of every group of rows (a tile or a single row; `mass_bounds.py`). Groups are scored
exactly, widest bracket first, until the log mass of a class is known to +-epsilon; what counts is the share of the bank
scored by then.
Prints Markdown. The bounds and their proofs: docs/decisions/0010-partial-scoring.md. For layers of the cosine metric.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mass_bounds import (
    BOUNDS,
    Bound,
    Floats,
    Layer,
    Order,
    exact,
    make_layer,
    sum_groups,
    tile_by_order,
    tile_by_splits,
)
from softkin.mass import unit_rows

BATCH = 32
CALIBRATION_ROWS = 1000
ALPHA = 0.05
ROUNDS = 41
SHARES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Shares of the predicted class scored exactly before the verdict is tried again."""
TIMED = ("projection, a quarter", "int8")


class Queries(NamedTuple):
    """Representations `[Q, D]` per layer, and `[Q]` predicted classes."""

    z: list[Floats]
    predicted: NDArray[np.int64]


def densities(layers: list[Layer], queries: Queries, scale: float) -> Floats:
    """`[Q]` exact outlier scores of the density form."""
    score = np.zeros(len(queries.predicted))
    for layer, z in zip(layers, queries.z, strict=True):
        mass = sum_groups(exact(layer, z, scale * layer.temperature), layer.classes) - np.log(np.diff(layer.classes))
        score -= mass[np.arange(len(z)), queries.predicted]
    return score


def brackets(lower: Floats, upper: Floats, a: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Order of scoring `[B, G]`, and bounds of the log mass after 0 to G groups are scored `[B, G + 1]`."""
    top = a.max(axis=1, keepdims=True)
    low, high, true = np.exp(lower - top), np.exp(np.minimum(upper - top, 600)), np.exp(a - top)
    order = np.argsort(low - high, axis=1)
    none = np.zeros((len(a), 1))
    scored = np.hstack([none, np.cumsum(np.take_along_axis(true, order, 1), axis=1)])

    def total(m: Floats) -> Floats:
        rest = np.cumsum(np.take_along_axis(m, order, 1)[:, ::-1], axis=1)[:, ::-1]
        return np.asarray(np.log(np.maximum(scored + np.hstack([rest, none]), 1e-300)) + top)

    return order, total(low), total(high)


def study(layers: list[Layer], queries: Queries, bound: Bound, scale: float, threshold: float) -> dict[str, float]:
    """Shares of the bank that must be scored, means over queries and layers; see `COLUMNS`."""
    goals = {"all .01": 1e-2, "all .001": 1e-3, "score .01": 1e-2 / len(layers)}
    found: dict[str, list[float]] = {}
    score = np.zeros((2, len(queries.predicted), len(SHARES)))
    for layer, z_all in zip(layers, queries.z, strict=True):
        t, n = scale * layer.temperature, len(layer.rows)
        for begin in range(0, len(z_all), BATCH):
            part = slice(begin, begin + BATCH)
            z, predicted = z_all[part], queries.predicted[part]
            lower, upper, starts = bound(layer, z, t)
            ends = np.append(starts, n)
            a = sum_groups(exact(layer, z, t), ends)
            slack = 1e-9 * np.maximum(np.abs(a), 1) + 1e-9 / t
            assert (lower <= a + slack).all()
            assert (a <= upper + slack).all()
            masks = {goal: np.zeros(a.shape, bool) for goal in goals}
            cuts = np.searchsorted(starts, layer.classes)
            for j, c in enumerate(slice(*pair) for pair in pairwise(cuts)):
                order, low, high = brackets(lower[:, c], upper[:, c], a[:, c])
                for goal, epsilon in goals.items():
                    needed = ((high - low)[:, :-1] > 2 * epsilon).sum(axis=1)
                    if goal.startswith("score"):
                        needed[predicted != j] = 0
                    first = np.arange(order.shape[1]) < needed[:, None]
                    masks[goal][:, c] = np.take_along_axis(first, np.argsort(order, axis=1), 1)
                own = np.flatnonzero(predicted == j)
                tries = np.round(np.array(SHARES) * order.shape[1]).astype(int)
                for side, m in zip(score, (high, low), strict=True):
                    side[begin + own] -= m[own][:, tries] - np.log(np.diff(layer.classes)[j])
            for goal, mask in masks.items():
                found.setdefault(goal, []).append(float((mask @ np.diff(ends)).mean() / n))
                found.setdefault(f"{goal}, {BATCH}", []).append(float(mask.any(axis=0) @ np.diff(ends) / n))
    first = ((score[0] > threshold) | (score[1] <= threshold)).argmax(axis=1)
    verdict = {"verdict": np.array(SHARES)[first].mean(), "at once": (first == 0).mean()}
    width = float(np.median(score[1, :, 0] - score[0, :, 0]) / 2)
    return {k: float(np.mean(v)) for k, v in found.items()} | verdict | {"width": width}


COLUMNS = {
    "all .01": "each class +-.01",
    "all .01, 32": "same, union of 32",
    "all .001": "each class +-.001",
    "all .001, 32": "same, union of 32",
    "score .01": "score +-.01",
    "score .01, 32": "same, union of 32",
    "verdict": "verdict: share of the class",
    "at once": "verdicts by the bound alone",
    "width": "score by the bound alone, +-",
}


Op = Callable[..., str]


def session(layers: list[Layer], build: Callable[..., list[str]], gather: bool = False) -> ort.InferenceSession:
    """A session with inputs z0, z1, ... and, to gather, i0, i1, ...; `build(op, i, layer)` names a layer's outputs."""
    nodes: list[onnx.NodeProto] = []
    constants: list[TensorProto] = []

    def op(kind: str, *inputs: str | NDArray[np.generic], **attributes: str | int) -> str:
        names = [x if isinstance(x, str) else f"c{len(constants)}_{k}" for k, x in enumerate(inputs)]
        arrays = {n: x for n, x in zip(names, inputs, strict=True) if not isinstance(x, str)}
        constants.extend(numpy_helper.from_array(x, n) for n, x in arrays.items())
        nodes.append(helper.make_node(kind, names, [f"n{len(nodes)}"], **attributes))
        return f"n{len(nodes) - 1}"

    outputs = [name for i, layer in enumerate(layers) for name in build(op, i, layer)]
    kinds = {f"z{i}": TensorProto.FLOAT for i in range(len(layers))}
    kinds |= {f"i{i}": TensorProto.INT64 for i in range(len(layers))} if gather else {}
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "partial", made, ends, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def masses(op: Op, i: int, layer: Layer, *, classes: list[int]) -> list[str]:
    """Exact masses: a product per class, and a maximum where exp could overflow, as in the scorer."""
    found, axis, bounded = [], np.array([1]), layer.temperature >= 1 / 80
    for j in classes:
        rows = layer.rows[layer.classes[j] : layer.classes[j + 1]] / layer.temperature
        a = op("Gemm", f"z{i}", rows.astype(np.float32), transB=1)
        top = np.zeros((1, 1), np.float32) if bounded else op("ReduceMax", a, axis)
        total = op("ReduceSum", op("Exp", a if bounded else op("Sub", a, top)), axis)
        found.append(op("Add", op("Log", total), top))
    return [op("Concat", *found, axis=1)]


def partly(op: Op, i: int, layer: Layer, *, bound: str) -> list[str]:
    """What a bound cannot do without: its product with all rows, and the exact product with those it asks for."""
    n, width = layer.rows.shape
    if bound == "int8":  # by the kernel that reads int8 rows fastest at batch 1; it rounds the queries too
        step = np.abs(layer.rows).max(axis=1, keepdims=True) / 127
        rows, scales = (np.round(layer.rows / step) + 128).astype(np.uint8)[:, None], step[:, 0].astype(np.float32)
        shape = {"K": width, "N": n, "bits": 8, "block_size": width, "accuracy_level": 4}
        product = op("MatMulNBits", f"z{i}", rows, scales, domain="com.microsoft", **shape)
    else:
        v = layer.directions[:, : width // 4].astype(np.float32)
        product = op("Gemm", op("MatMul", f"z{i}", v), (layer.rows @ v).astype(np.float32), transB=1)
    chosen = op("Gather", layer.rows.astype(np.float32), f"i{i}", axis=0)
    return [op("ReduceMax", product, np.array([1])), op("Gemm", f"z{i}", chosen, transB=1)]


def timings(layers: list[Layer], queries: Queries, needed: dict[tuple[str, int], float]) -> None:
    """Print interleaved medians; `needed`: share of the rows to gather, by bound and batch."""
    count, n = len(layers[0].classes) - 1, len(layers[0].rows)
    whole = session(layers, partial(masses, classes=list(range(count))))
    single = [session(layers, partial(masses, classes=[j])) for j in range(count)]
    parts = {name: session(layers, partial(partly, bound=name), gather=True) for name, _ in needed}

    def feeds(rows: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        return {f"z{i}": z[rows].astype(np.float32) for i, z in enumerate(queries.z)}

    def by_class(rows: NDArray[np.int64]) -> None:
        for j in np.unique(queries.predicted[rows]):
            single[j].run(None, feeds(rows[queries.predicted[rows] == j]))

    def gather(rows: NDArray[np.int64], name: str, chosen: NDArray[np.int64]) -> None:
        parts[name].run(None, feeds(rows) | {f"i{i}": chosen for i in range(len(layers))})

    print("\n| batch | what | ms | ratio |\n|---|---|---|---|")
    for batch in (1, BATCH):
        exactly = "exact, all classes"
        calls: dict[str, Callable[..., object]] = {exactly: lambda rows: whole.run(None, feeds(rows))}
        calls["exact, predicted class"] = by_class
        for (name, of), share in needed.items():
            chosen = np.sort(np.random.default_rng(0).permutation(n)[: int(share * n)])
            if of == batch:
                calls[f"{name}, and {share:.0%} of the rows"] = partial(gather, name=name, chosen=chosen)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for at in range(-2, ROUNDS):  # the first two warm up
            rows = np.arange(at * batch, (at + 1) * batch) % len(queries.predicted)
            for name, call in calls.items():
                started = time.perf_counter()
                call(rows)
                seconds[name] += [time.perf_counter() - started] if at >= 0 else []
        for name, s in seconds.items():
            ratio = np.median(np.array(s) / np.array(seconds[exactly]))
            print(f"| {batch} | {name} | {1e3 * np.median(s):.2f} | {ratio:.2f} |")


def of_bundle(arguments: argparse.Namespace) -> tuple[list[Floats], NDArray[np.int64], list[float], dict[str, Queries]]:
    """Bank rows per layer, labels, temperatures, and queries by name."""
    from softkin.bundle import read_bundle
    from softkin.scorer import Network

    bundle = read_bundle(arguments.bundle)
    network, layers = Network(bundle.path / "model.onnx", device="cpu"), bundle.bank.layers
    if any(b.metric != "cosine" or b.rows.dtype != np.float32 for b in layers.values()):
        raise SystemExit("the bundle must hold float32 rows of the cosine metric")
    real = bundle.bank.labels >= 0
    files = {"inliers": arguments.inliers} | dict(o.split("=", 1) for o in arguments.outliers)
    found = {}
    for name, file in files.items():
        x = np.load(file, allow_pickle=False)["x_test"]
        wanted = arguments.queries + (CALIBRATION_ROWS if name == "inliers" else 0)
        outputs = network.run(x[np.random.default_rng(0).permutation(len(x))[:wanted]])
        z = [unit_rows(outputs[f"representation.{layer}"].astype(np.float64)) for layer in layers]
        found[name] = Queries(z, outputs["logits"].argmax(axis=1))
    rows = [unit_rows(b.rows[real, : b.dim].astype(np.float64)) for b in layers.values()]
    return rows, bundle.bank.labels[real], [b.temperature for b in layers.values()], found


def synthetic(arguments: argparse.Namespace) -> tuple[list[Floats], NDArray[np.int64], list[float], dict[str, Queries]]:
    """The clusters of benchmarks/scorer.py; queries have their cluster as predicted class; outliers point anywhere."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, 128))
    labels, wanted = rng.integers(0, 10, 60_000), rng.integers(0, 10, arguments.queries + CALIBRATION_ROWS)
    rows, inliers = (unit_rows(centers[y] + rng.normal(size=(len(y), 128))) for y in (labels, wanted))
    anywhere = unit_rows(rng.normal(size=(arguments.queries, 128)))
    outliers = Queries([anywhere], (anywhere @ centers.T).argmax(axis=1))
    return [rows], labels, [0.1], {"inliers": Queries([inliers], wanted), "anywhere": outliers}


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="synthetic clusters when left out")
    parser.add_argument("--inliers", metavar="FILE", help="npz with x_test")
    parser.add_argument("--outliers", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--queries", type=int, default=BATCH, help="of each kind; the first 32 are the batch")
    parser.add_argument("--scales", nargs="*", type=float, default=[0.25, 1, 4, 16], help="times the temperature")
    parser.add_argument("--bounds", nargs="*", default=list(BOUNDS), choices=list(BOUNDS))
    arguments = parser.parse_args()
    rows, labels, temperatures, queries = (of_bundle if arguments.bundle else synthetic)(arguments)
    ordered: dict[Order, list[Layer]] = {
        order: [make_layer(r, labels, t, order) for r, t in zip(rows, temperatures, strict=True)]
        for order in (tile_by_order, tile_by_splits)
    }
    (z, predicted), first = queries["inliers"], arguments.queries
    queries["inliers"] = Queries([x[:first] for x in z], predicted[:first])
    held_out = Queries([x[first:] for x in z], predicted[first:])
    print(f"{len(labels):,} rows; T = " + ", ".join(f"{t:.4g}" for t in temperatures) + "\n")
    print("| bound | reads first | T x | queries | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|" + "---|" * (3 + len(COLUMNS)))
    needed: dict[tuple[str, int], float] = {}
    for scale in arguments.scales:
        scores = np.sort(densities(ordered[tile_by_order], held_out, scale))
        threshold = scores[len(scores) - int(ALPHA * (len(scores) + 1))]
        for name in arguments.bounds:
            bound, order, before = BOUNDS[name]
            for kind, of_kind in queries.items():
                result = study(ordered[order], of_kind, bound, scale, threshold)
                known = list(COLUMNS)[: 6 if before == "-" else None]  # an oracle is no bound: it decides nothing
                cells = " | ".join(f"{result[c]:.3f}" if c in known else "-" for c in COLUMNS)
                print(f"| {name} | {before} | {scale:g} | {kind} | {cells} |", flush=True)
                if (scale, kind) == (1, "inliers") and name in TIMED:
                    needed |= {(name, 1): result["all .01"], (name, BATCH): result[f"all .01, {BATCH}"]}
    timings(ordered[tile_by_order], queries["inliers"], needed)


if __name__ == "__main__":
    main()
