"""The scorer, and the ceilings of the machine.

Every builder here and in `peers` takes the same bank (rows of unit norm, sorted by class, in an npy file) and returns a
function of `[B, D]` queries. Each imports its libraries itself, so that a worker's memory counts them.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from banks import BANK, MODEL, write_network
from softkin.bank import Precision, pack
from workers import Call

K = 50


def load(bank: str, labels: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The bank's rows and labels."""
    return np.load(bank), np.load(labels)


def softkin(
    *,
    bank: str,
    labels: str,
    temperature: float,
    device: str = "cpu",
    neighbors: int = 0,
    bounded: bool = True,
    precision: Precision = "float32",
    layers: int = 1,
    weighted: bool = False,
    temperature_factor: float = 1.0,
    tile_rows: int | None = None,
) -> Call:
    """The scorer: class masses, with exact nearest rows on request.

    Args:
        bank: rows of every layer.
        labels: their classes.
        temperature: T.
        device: as for `Scorer`.
        neighbors: how many nearest rows to find in the same pass.
        bounded: False takes the form for any temperature though the logits are bounded.
        precision: of the bank.
        layers: how many layers, each with rows of its own.
        weighted: random weights for each row and layer, as condensed banks have them.
        temperature_factor: what T is multiplied by.
        tile_rows: of a small tile, as for `pack`.
    """
    from safetensors.numpy import save_file

    import softkin.scorer as scoring
    from softkin.bundle_arrays import bank_tensors
    from softkin.precision import reduce_precision

    z, y = load(bank, labels)
    names = [f"z{i}" for i in range(layers)]
    weights = np.random.default_rng(0).uniform(1, 40, (layers, len(y))) if weighted else None
    folder = tempfile.TemporaryDirectory()
    model, file = Path(folder.name) / MODEL, Path(folder.name) / BANK
    write_network(model, names, z.shape[1])
    packed = pack(
        dict.fromkeys(names, z),
        y,
        np.arange(len(y)),
        num_classes=int(y.max()) + 1,
        temperatures=dict.fromkeys(names, temperature_factor * temperature),
        metrics=dict.fromkeys(names, "cosine"),
        weights=weights,
        tile_rows=tile_rows,
    )
    packed = reduce_precision(packed, precision)
    save_file(bank_tensors(packed), file)
    del z
    if not bounded:
        scoring.is_bounded = lambda layer: False  # type: ignore[assignment]
    scorer = scoring.Scorer(model, packed, file, device=device)
    del packed

    def call(x: NDArray[np.float32]) -> Any:
        return scorer.run_with_nearest(x, neighbors) if neighbors else scorer.run(x)

    call.folder = folder  # type: ignore[attr-defined]  # the session's external data live as long as the call
    call.device = scorer.device  # type: ignore[attr-defined]
    call.session = scorer._session  # type: ignore[attr-defined]
    return call


def matmul(*, bank: str, labels: str, temperature: float, large_pages: bool = False) -> Call:
    """The ceiling: onnxruntime's MatMul of the same shape and nothing else. One column comes back.

    The session is like the scorer's, but its memory is as onnxruntime takes it: not in large pages, unless told so.
    """
    from onnx import TensorProto, helper, numpy_helper

    import softkin.session
    from softkin.device import Target

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
    if not large_pages:
        softkin.session.in_large_pages = lambda expected_bytes: nullcontext()
    session, _ = softkin.session.start_session(model, Target("cpu"))
    del z, graph, model
    return lambda x: session.run(None, {"x": x})


def torch_matmul(*, bank: str, labels: str, temperature: float, device: str) -> Call:
    """The ceiling on CUDA: cuBLAS in full float32; one column comes back."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    rows = torch.from_numpy(load(bank, labels)[0]).to(device)

    def call(x: NDArray[np.float32]) -> Any:
        return (torch.from_numpy(x).to(device) @ rows.T)[:, :1].cpu()

    call.device = str(rows.device)  # type: ignore[attr-defined]
    return call


def read_once(*, bank: str, labels: str, temperature: float, device: str = "cpu") -> Call:
    """The ceiling at one query: the bank read from memory once, by a sum on every core."""
    import torch

    rows = torch.from_numpy(load(bank, labels)[0]).to(device)

    def call(x: NDArray[np.float32]) -> Any:
        return rows.sum().item()

    call.device = str(rows.device)  # type: ignore[attr-defined]
    return call
