"""A real bundle, built without torch, for every test that needs one."""

from __future__ import annotations

import gc
import shutil
import signal
import socketserver
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.rows import Rows

WIDTH, CLASSES = 12, 3

# Imports leave hardly any garbage, and looking for it among all that they make took a third of their time.
gc.disable()


def pytest_configure() -> None:
    """Let Ctrl-C reach tests of it: what a shell starts in the background ignores it, and so do all its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Take modules and tests, which stay to the end, out of the garbage collector's sight: each look took a second."""
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class Tiny:
    """Three Gaussian clusters, a network that tells them apart, and a bundle made of both."""

    path: Path
    model: bytes
    spec: DetectorSpec
    bank: Rows
    calibration: Rows
    inliers: np.ndarray
    outliers: np.ndarray


def tiny_model(centers: np.ndarray) -> bytes:
    """float32 `[B, WIDTH]` -> logits, and two unit-norm representations: all of the input, and its first half."""
    half = WIDTH // 2
    nodes = [
        helper.make_node("MatMul", ["inputs", "w"], ["logits"]),
        helper.make_node("Slice", ["inputs", "zero", "half", "one"], ["first"]),
        helper.make_node("LpNormalization", ["inputs"], ["representation.wide"], axis=1, p=2),
        helper.make_node("LpNormalization", ["first"], ["representation.narrow"], axis=1, p=2),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value("inputs", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            value("logits", TensorProto.FLOAT, ["batch", CLASSES]),
            value("representation.wide", TensorProto.FLOAT, ["batch", WIDTH]),
            value("representation.narrow", TensorProto.FLOAT, ["batch", half]),
        ],
        [
            numpy_helper.from_array(centers.T.astype(np.float32), "w"),
            *[numpy_helper.from_array(np.array([v]), k) for k, v in {"zero": 0, "half": half, "one": 1}.items()],
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


@pytest.fixture(scope="session", autouse=True)
def _http_ports_close_at_once() -> None:
    """Python's HTTP servers look twice a second whether they are to close: most of what a test of a server took."""
    socketserver.BaseServer.serve_forever.__defaults__ = (0.01,)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A bundle in the joint form over two layers; never change its files: copy them (`tiny_copy`)."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(CLASSES, WIDTH)) * 2

    def rows(n: int, first_id: int) -> Rows:
        y = np.arange(n) % CLASSES
        return Rows(
            (centers[y] + 0.6 * rng.normal(size=(n, WIDTH))).astype(np.float32), y, np.arange(first_id, first_id + n)
        )

    spec = DetectorSpec(
        name="tiny",
        version="1",
        classes=("a", "b", "c"),
        layers=(LayerSpec(name="wide", metric="cosine"), LayerSpec(name="narrow", metric="cosine")),
        nonconformity="joint",
        parts=("posterior", "density", "density_last"),
    )
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    model, bank, some = tiny_model(centers), rows(300, 0), rows(400, 1000)
    outliers, inliers = (10 * rng.normal(size=(50, WIDTH))).astype(np.float32), rows(500, 5000).x
    more = rows(200, 1400)
    calibration = Rows(*(np.concatenate(pair) for pair in ((some.x, more.x), (some.y, more.y), (some.ids, more.ids))))
    build(path, model, spec, bank_rows=bank, calibration_rows=calibration)
    return Tiny(path, model, spec, bank, calibration, inliers, outliers)


@pytest.fixture
def tiny_copy(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the tiny bundle to damage."""
    return Path(shutil.copytree(tiny.path, tmp_path / "copy"))


@pytest.fixture(scope="session")
def cuda_works() -> bool:
    """Whether a tiny session really runs on CUDA here."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    return session.get_providers()[0] == "CUDAExecutionProvider"
