"""What the scorer is compared with: the ceilings of the machine, and what people use today.

Every function here takes the same bank (rows of unit norm, sorted by class, in an npy file) and returns a function of
`[B, D]` queries. Those marked k = 50 return neighbours, as their users have them; the others return class masses.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers import Call

K = 50


def load(bank: str, labels: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The bank's rows and labels."""
    return np.load(bank), np.load(labels)


def softkin(*, bank: str, labels: str, temperature: float, neighbors: int = 0, bounded: bool = True) -> Call:
    """The scorer: class masses, with exact nearest rows on request."""
    import onnx
    from onnx import TensorProto, helper
    from safetensors.numpy import save_file

    import softkin.scorer as scoring
    from softkin.bank import pack
    from softkin.bundle import bank_tensors
    from softkin.scorer_graph import representation_output

    z, y = load(bank, labels)
    name = representation_output("z")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [name])],
        "identity",
        [value("x", TensorProto.FLOAT, ["batch", z.shape[1]])],
        [value(name, TensorProto.FLOAT, ["batch", z.shape[1]])],
    )
    folder = tempfile.TemporaryDirectory()
    model, file = Path(folder.name) / "model.onnx", Path(folder.name) / "bank.safetensors"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), model)
    packed = pack(
        {"z": z},
        y,
        np.arange(len(y)),
        num_classes=int(y.max()) + 1,
        temperatures={"z": temperature},
        metrics={"z": "cosine"},
    )
    save_file(bank_tensors(packed), file)
    del z
    if not bounded:
        scoring.is_bounded = lambda layer: False  # type: ignore[assignment]  # the form for any temperature
    scorer = scoring.Scorer(model, packed, file, device="cpu")
    del packed

    def call(x: NDArray[np.float32]) -> Any:
        outputs = scorer.run(x)
        return (outputs, scorer.nearest(x, neighbors)) if neighbors else outputs

    call.folder = folder  # type: ignore[attr-defined]  # the session's external data live as long as the call
    return call


def matmul(*, bank: str, labels: str, temperature: float) -> Call:
    """The ceiling: onnxruntime's MatMul of the same shape and nothing else; one column comes back."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    z, _ = load(bank, labels)
    value = helper.make_tensor_value_info
    ends = {"start": 0, "end": 1, "axis": 1}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["l"]), helper.make_node("Slice", ["l", *ends], ["y"])],
        "matmul",
        [value("x", TensorProto.FLOAT, ["batch", z.shape[1]])],
        [value("y", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(np.ascontiguousarray(z.T), "w"),
            *[numpy_helper.from_array(np.array([v]), k) for k, v in ends.items()],
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})


def read_once(*, bank: str, labels: str, temperature: float) -> Call:
    """The ceiling at one query: the bank read from memory once, by a sum on every core."""
    import torch

    z, _ = load(bank, labels)
    rows = torch.from_numpy(z)
    return lambda x: rows.sum()


def faiss_flat(*, bank: str, labels: str, temperature: float) -> Call:
    """FAISS IndexFlatIP, k = 50: exact inner product search."""
    import faiss

    z, _ = load(bank, labels)
    index = faiss.IndexFlatIP(z.shape[1])
    index.add(z)
    return lambda x: index.search(x, K)


def faiss_hnsw(*, bank: str, labels: str, temperature: float) -> Call:
    """FAISS HNSW32, efSearch 64, k = 50: approximate."""
    import faiss

    z, _ = load(bank, labels)
    index = faiss.IndexHNSWFlat(z.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(z)
    index.hnsw.efSearch = 64
    return lambda x: index.search(x, K)


def sklearn_brute(*, bank: str, labels: str, temperature: float) -> Call:
    """scikit-learn NearestNeighbors, brute force, k = 50: what pytorch-ood's and PyOD's KNN run."""
    from sklearn.neighbors import NearestNeighbors

    z, _ = load(bank, labels)
    index = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(z)
    return lambda x: index.kneighbors(x)


def torch_segments(*, bank: str, labels: str, temperature: float) -> Call:
    """PyTorch: one product, exponentials, a sum per class by index_add."""
    import torch

    z, y = load(bank, labels)
    rows, label, classes = torch.from_numpy(z), torch.from_numpy(y), int(y.max()) + 1

    def call(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            e = torch.exp((torch.from_numpy(x) @ rows.T - 1) / temperature)
            return torch.zeros(len(x), classes).index_add_(1, label, e).log_()

    return call


def torch_attention(*, bank: str, labels: str, temperature: float) -> Call:
    """PyTorch scaled_dot_product_attention with one-hot values: class shares."""
    import torch
    from torch.nn import functional

    z, y = load(bank, labels)
    keys, values = torch.from_numpy(z)[None], functional.one_hot(torch.from_numpy(y)).float()[None]

    def call(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return functional.scaled_dot_product_attention(
                torch.from_numpy(x)[None], keys, values, scale=1 / temperature
            )

    return call
