"""Banks and scorers for the tests of the scorer, and how close two masses must be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from softkin import mass
from softkin.bank import Bank, pack
from softkin.bundle_arrays import bank_tensors
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


def start(tmp_path: Path, bank: Bank, dims: dict[str, int], **options: int | None) -> Scorer:
    """A scorer over `bank` whose inputs are the concatenated representations; `chunk_rows` and others as for it."""
    onnx.save(identity_model(dims, normalize=False), tmp_path / "model.onnx")
    save_file(bank_tensors(bank), tmp_path / "bank.safetensors")
    return Scorer(tmp_path / "model.onnx", bank, tmp_path / "bank.safetensors", device="cpu", **options)


def profile_sessions(monkeypatch, folder: Path) -> None:
    """Sessions that start from now on write down what they run."""

    class Profiled(ort.SessionOptions):
        def __init__(self):
            super().__init__()
            self.enable_profiling, self.profile_file_prefix = True, str(folder / "profile")

    monkeypatch.setattr(ort, "SessionOptions", Profiled)


def unoptimized(monkeypatch) -> None:
    """Sessions that start from now on run their graph as it is written."""

    class AsWritten(ort.SessionOptions):
        def __init__(self):
            super().__init__()
            self.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    monkeypatch.setattr(ort, "SessionOptions", AsWritten)


def kernels_run(session: ort.InferenceSession) -> list[dict]:
    """Names and arguments of the kernels that a profiled session has run, in their order."""
    events = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in events if event["name"].endswith("_kernel_time")]


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


def packed(z, labels, temperatures, metric, weights, tile_rows=None):
    """A bank of `z` by the same metric in all layers; row i has id i."""
    return pack(
        z,
        labels,
        np.arange(len(labels)),
        num_classes=int(labels.max()) + 1,
        temperatures=temperatures,
        metrics=dict.fromkeys(z, metric),
        weights=weights,
        tile_rows=tile_rows,
    )


def terms(query: np.ndarray, bank: np.ndarray, metric: str) -> float:
    """Size of the numbers that a distance is the difference of."""
    if metric == "cosine":
        return 2.0
    center = bank.mean(axis=0)
    return float(np.square(query - center).sum(axis=1).max() + np.square(bank - center).sum(axis=1).max())
