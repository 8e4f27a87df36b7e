"""A classifier that takes token ids, as language models do: ids that it has no vector for are the caller's fault."""

from __future__ import annotations

import contextlib
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from prometheus_client import CollectorRegistry

from foreign_models import tensor
from softkin.client import Client
from softkin.detector import Detector
from softkin.errors import InvalidInputError
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.server import Server
from softkin.settings import ServerSettings
from softkin_training.cli import main

WORDS, LENGTH = 50, 6
DOCS = Path(__file__).parents[2] / "docs" / "your-data.md"
MESSAGE = (
    r"inputs: the model cannot take these values \(indices element out of data bounds, idx=77 .*\); leave such rows out"
)


def sentences(n, seed):
    """`[n, LENGTH]` int64 ids."""
    return np.random.default_rng(seed).integers(0, WORDS, (n, LENGTH))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Of the mean of word vectors."""
    folder, rng = tmp_path_factory.mktemp("tokens"), np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["vectors", "ids"], ["words"]),
        helper.make_node("ReduceMean", ["words", "axis"], ["hidden"], keepdims=0),
        helper.make_node("MatMul", ["hidden", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", LENGTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [
            tensor(rng.normal(size=(WORDS, 8)), "vectors"),
            tensor(np.array([1]), "axis"),
            tensor(rng.normal(size=(8, 2)), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "m.onnx")
    np.savez(folder / "d.npz", x_train=sentences(200, 1), y_train=np.arange(200) % 2)
    arguments = ["--onnx", str(folder / "m.onnx"), "--layers", "hidden", "--data", str(folder / "d.npz")]
    assert main(["fit", *arguments, "--out", str(folder)]) == 0
    return folder / "bundle"


def test_an_id_beyond_the_vocabulary_is_the_callers_fault(bundle, capfd):
    """No failure of the device; and nothing is written past the log."""
    detector = Detector.load(bundle, device="cpu")

    with pytest.raises(InvalidInputError, match=MESSAGE):
        detector.score(np.full((2, LENGTH), 77))
    assert capfd.readouterr() == ("", "")
    assert len(detector.score(sentences(3, 2)).p_value) == 3


def test_over_the_wire_it_is_an_invalid_argument(bundle):
    """UNAVAILABLE would have clients try again and again."""
    registry, metrics = Registry(), Metrics(CollectorRegistry(), version="0")
    registry.add(Detector.load(bundle, device="cpu"))
    server = Server(ServerSettings(host="127.0.0.1", port=0, metrics_port=0), registry, metrics)
    server.listen()
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop_now)
        server.make_ready()
        client = stack.enter_context(Client(f"127.0.0.1:{server.port}"))
        with pytest.raises(InvalidInputError, match=MESSAGE):
            client.score(np.full((2, LENGTH), 77))
        assert len(client.score(sentences(3, 2)).p_value) == 3


def test_a_mask_that_follows_from_the_ids_is_computed_in_the_model(tmp_path, monkeypatch):
    """By the code of the documentation, as it stands there: fit takes the model, whose numbers stay the same."""
    nodes = [
        helper.make_node("Gather", ["vectors", "input_ids"], ["words"]),
        helper.make_node("Gather", ["types", "token_type_ids"], ["kinds"]),
        helper.make_node("Add", ["words", "kinds"], ["both"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["deep"]),
        helper.make_node("Cast", ["deep"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["both", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["hidden"], keepdims=0),
        helper.make_node("MatMul", ["hidden", "w"], ["scores"]),
    ]
    names = ["input_ids", "token_type_ids", "attention_mask"]
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "tokens",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", LENGTH]) for name in names],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [
            tensor(rng.normal(size=(WORDS, 8)), "vectors"),
            tensor(rng.normal(size=(2, 8)), "types"),
            tensor(rng.normal(size=(8, 2)), "w"),
            tensor(np.array([1]), "axis"),
            tensor(np.array([2]), "last"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    code = DOCS.read_text().split("### Several inputs")[1].split("    import numpy", 1)[1].split("\n\n")[0]
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent("    import numpy" + code), {})

    ids = sentences(200, 1)
    np.savez("d.npz", x_train=ids, y_train=np.arange(200) % 2)
    arguments = ["--onnx", "ids_alone.onnx", "--layers", "hidden", "--data", "d.npz", "--out", "."]
    assert main(["fit", *arguments]) == 0

    inputs = {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "token_type_ids": 0 * ids}
    scores = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"]).run(["scores"], inputs)[0]
    predicted = Detector.load("bundle", device="cpu").score(ids).predicted_class
    np.testing.assert_array_equal(predicted, scores.argmax(axis=1))
