"""The onnxruntime scorer computes the class masses of the NumPy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from softkin import mass
from softkin.bank import Bank, pack
from softkin.bundle import bank_tensors
from softkin.scorer import Scorer
from softkin.scorer_graph import representation_output

# A log mass is exact to 1e-5 relative, plus float32 rounding of the terms that a distance is the difference of: at
# T = 1e-3 of the median distance, one unit in the last place of |z|^2 is already visible.
RELATIVE = 1e-5
ROUNDING = 4 * np.finfo(np.float32).eps


def identity_model(dims: dict[str, int], *, normalize: bool) -> onnx.ModelProto:
    """A network whose representations are slices of its input."""
    nodes, inits, start = [], [], 0
    for name, dim in dims.items():
        raw = f"raw.{name}"
        for key, value in (("start", start), ("end", start + dim), ("axis", 1)):
            inits.append(helper.make_tensor(f"{key}.{name}", TensorProto.INT64, [1], [value]))
        nodes.append(helper.make_node("Slice", ["x", f"start.{name}", f"end.{name}", f"axis.{name}"], [raw]))
        kind = "LpNormalization" if normalize else "Identity"
        nodes.append(helper.make_node(kind, [raw], [representation_output(name)], **({"axis": 1} if normalize else {})))
        start += dim
    graph = helper.make_graph(
        nodes,
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", start])],
        [
            helper.make_tensor_value_info(representation_output(n), TensorProto.FLOAT, ["batch", d])
            for n, d in dims.items()
        ],
        inits,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def start(tmp_path: Path, bank: Bank, dims: dict[str, int], *, chunk_rows: int | None = None) -> Scorer:
    """A scorer over `bank` whose inputs are the concatenated representations."""
    onnx.save(identity_model(dims, normalize=False), tmp_path / "model.onnx")
    save_file(bank_tensors(bank), tmp_path / "bank.safetensors")
    return Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device="cpu", chunk_rows=chunk_rows)


def make(counts: list[int], dims: dict[str, int], metric: str, spread: float, weighted: bool, seed: int = 0):
    """Clustered representations with `counts` rows per class, unit norm for cosine."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    z = {}
    for name, d in dims.items():
        centers = rng.normal(size=(len(counts), d))
        rows = (centers[labels] + spread * rng.normal(size=(len(labels), d)) + 3.0).astype(np.float32)
        z[name] = mass.unit_rows(rows).astype(np.float32) if metric == "cosine" else rows
    weights = rng.uniform(0.5, 20, len(labels)).astype(np.float32) if weighted else None
    return z, labels, weights


CASES = {
    "one-row classes": [1, 1],
    "very unequal": [1, 700, 3, 64, 65, 128],
    "tile-sized": [64, 64, 64],
    "many classes": [3] * 500,
    "several folds": [5000, 10],
}


@pytest.mark.parametrize("metric", mass.METRICS)
@pytest.mark.parametrize("factor", [1e-3, 1e-1, 1.0, 1e3])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_masses_equal_the_reference(tmp_path, metric, factor, case, weighted):
    """Any temperature, metric, class sizes and weights: log masses agree to the stated rounding."""
    dims = {"a": 16, "b": 5}
    z, labels, weights = make(CASES[case], dims, metric, 0.5, weighted)
    query = {n: np.concatenate([v[:4], v[-3:]]) for n, v in z.items()}
    temperature = {n: factor * float(np.median(mass.distances(query[n], v, metric))) for n, v in z.items()}
    bank = pack(
        z,
        labels,
        np.arange(len(labels)),
        num_classes=len(CASES[case]),
        temperatures=temperature,
        metrics=dict.fromkeys(dims, metric),
        weights=weights,
    )
    scorer = start(tmp_path, bank, dims, chunk_rows=1024)

    found = scorer.run(np.concatenate(list(query.values()), axis=1)).masses

    expected = np.stack(
        [
            mass.class_mass(
                query[n],
                v,
                labels,
                num_classes=len(CASES[case]),
                temperature=temperature[n],
                metric=metric,
                weights_N=weights,
            )
            for n, v in z.items()
        ],
        axis=1,
    )
    rounding = np.array([ROUNDING * terms(query[n], v, metric) / temperature[n] for n, v in z.items()])
    assert (np.abs(found - expected) <= RELATIVE * np.maximum(np.abs(expected), 1.0) + rounding[None, :, None]).all()


def terms(query: np.ndarray, bank: np.ndarray, metric: str) -> float:
    """Size of the numbers that a distance is the difference of."""
    if metric == "cosine":
        return 2.0
    center = bank.mean(axis=0)
    return float(np.square(query - center).sum(axis=1).max() + np.square(bank - center).sum(axis=1).max())
