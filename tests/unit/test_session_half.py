"""Models that compute in 16 bits, which one of onnxruntime's optimizers does not survive."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from softkin import Detector, session
from softkin.device import Target
from softkin.session import start_session
from softkin_training.cli import main

TOKENS, WIDTH, CLASSES = 5, 4, 3
X = np.random.default_rng(0).normal(size=(120, TOKENS, WIDTH)).astype(np.float32)


def attending(dtype=np.float16):
    """A classifier `[B, tokens, width]` whose tokens come first for a while, as torch's attention has them."""
    rng = np.random.default_rng(1)
    weights = {"w": rng.normal(size=(WIDTH, WIDTH)), "v": rng.normal(size=(WIDTH, CLASSES))}
    constants = [numpy_helper.from_array(w.astype(dtype), n) for n, w in weights.items()]
    constants.append(numpy_helper.from_array(np.array([1]), "axis"))
    to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=to),
        helper.make_node("Transpose", ["narrow"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["hidden"], perm=[1, 0, 2]),
        helper.make_node("ReduceMean", ["hidden", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "v"], ["scores"]),
        helper.make_node("Cast", ["scores"], ["logits"], to=TensorProto.FLOAT),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attending",
        [value("x", TensorProto.FLOAT, ["batch", TOKENS, WIDTH])],
        [value("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def logits(started):
    """Of all rows."""
    return started.run(["logits"], {"x": X})[0]


def test_a_half_model_whose_tokens_come_first_runs(tmp_path):
    """Composed or from a file; with the optimizer the process would be gone."""
    onnx.save(attending(), tmp_path / "m.onnx")
    expected = logits(start_session(attending(np.float32), Target("cpu"))[0])

    for model in (attending(), tmp_path / "m.onnx"):
        assert logits(start_session(model, Target("cpu"))[0]) == pytest.approx(expected, abs=0.02)


def test_such_a_classifier_becomes_a_bundle_that_scores(tmp_path, monkeypatch):
    """With a layer of three axes, which is flattened."""
    monkeypatch.chdir(tmp_path)
    onnx.save(attending(), "m.onnx")
    np.savez("d.npz", x_train=X, y_train=np.arange(len(X)) % CLASSES)

    assert (
        main(["fit", "--onnx", "m.onnx", "--layers", "hidden,mean", "--data", "d.npz", "--alpha", "0.1", "--out", "."])
        == 0
    )
    assert len(Detector.load("bundle", device="cpu").score(X[:4]).p_value) == 4


@pytest.mark.parametrize(("dtype", "off"), [(np.float16, ["NchwcTransformer"]), (np.float32, [])])
def test_convolutions_in_float32_keep_their_optimizer(monkeypatch, dtype, off):
    """It is what makes them fast on the CPU."""
    asked = []

    class Recording(session.ort.InferenceSession):
        def __init__(self, *arguments, disabled_optimizers, **options):
            asked.append(disabled_optimizers)
            super().__init__(*arguments, disabled_optimizers=disabled_optimizers, **options)

    monkeypatch.setattr(session.ort, "InferenceSession", Recording)
    start_session(attending(dtype), Target("cpu"))

    assert asked == [off]


def test_a_bank_in_float16_is_no_half_model():
    """It is cast as it is read, and the network before it computes in float32."""
    model = attending(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float16), "bank"))
    model.graph.node.append(helper.make_node("Cast", ["bank"], ["wide"], to=TensorProto.FLOAT))

    assert not session._computes_in_half(model)
