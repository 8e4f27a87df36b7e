"""Classifiers that scikit-learn and torch made and exported become bundles, and are served."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import onnx
import pytest
import torch
from prometheus_client import CollectorRegistry
from scipy.stats import betabinom
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import nn

from softkin import Client, Detector
from softkin.metrics import Metrics
from softkin.registry import Registry
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin.server import Server
from softkin.settings import ServerSettings
from softkin_training.cli import main
from softkin_training.export import Reducer
from softkin_training.expose import expose
from softkin_training.projection import pooling

pytestmark = pytest.mark.training

LEVEL = 1e-4
"""Chance that a correct implementation fails a statistical test."""
CALIBRATION_ROWS = 399


@pytest.fixture(scope="module")
def digits():
    """Pixels and labels of the handwritten digits, shuffled: to train on, to calibrate with, to test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return [(x[part].astype(np.float32), y[part]) for part in np.split(order, [900, 900 + CALIBRATION_ROWS])]


@pytest.fixture(scope="module")
def mlp(digits):
    """A classifier of two hidden layers, by scikit-learn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPClassifier((64, 32), max_iter=80, random_state=0).fit(*digits[0])


@contextlib.contextmanager
def served(bundle):
    """The address of a server with one bundle, in this process."""
    registry, metrics = Registry(), Metrics(CollectorRegistry(), version="0")
    registry.add(Detector.load(bundle, device="cpu"))
    server = Server(ServerSettings(host="127.0.0.1", port=0, metrics_port=0), registry, metrics)
    server.listen()
    try:
        server.make_ready()
        yield f"127.0.0.1:{server.port}"
    finally:
        server.stop_now()


@pytest.mark.parametrize(("zipmap", "opset"), [(False, None), (True, None), (False, {"": 13, "ai.onnx.ml": 2})])
def test_a_scikit_learn_classifier_becomes_a_bundle_and_is_served(digits, mlp, tmp_path, zipmap, opset):
    """Held-out digits are flagged at alpha = 0.05, as an exact test has it, inverted ones nearly always."""
    onnx.save(to_onnx(mlp, digits[0][0][:1], options={"zipmap": zipmap}, target_opset=opset), tmp_path / "mlp.onnx")
    (x_train, y_train), (x_calibration, y_calibration), (x_test, y_test) = digits
    np.savez(tmp_path / "train.npz", x_train=x_train, y_train=y_train)
    np.savez(tmp_path / "calibration.npz", x_test=x_calibration, y_test=y_calibration)
    files = ["--data", str(tmp_path / "train.npz"), "--calibration", str(tmp_path / "calibration.npz")]
    layers = "next_activations,next_activations1"
    command = ["fit", "--onnx", str(tmp_path / "mlp.onnx"), "--layers", layers, *files, "--out", str(tmp_path)]

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(command) == 0

    assert ", 10 probabilities, their log serves as logits\n" in text.getvalue()
    with served(tmp_path / "bundle") as target, Client(target) as client:
        inliers = client.score(x_test, alpha=0.05)
        inverted = client.score(16 - x_test, alpha=0.05)
    assert (inliers.predicted_class == mlp.predict(x_test)).all()
    assert (inliers.predicted_class == y_test).mean() > 0.9
    # Of 400 possible p-values 20 are flagged: over calibration sets too, the alarms are beta-binomial.
    alarms, exact = inliers.is_outlier.sum(), betabinom(len(x_test), 20, CALIBRATION_ROWS + 1 - 20)
    assert exact.sf(alarms - 1) > LEVEL / 2
    assert exact.cdf(alarms) > LEVEL / 2
    assert inverted.is_outlier.mean() > 0.9


class SmallCnn(nn.Module):
    """Two convolutions and a classifier, whose reshape fixes the batch size where the export does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16 * 2 * 2, 10)

    def forward(self, images):
        """`[B, 1, 8, 8]` images -> `[B, 10]` logits."""
        z = self.pool(torch.relu(self.conv1(images)))
        z = self.pool(torch.relu(self.conv2(z)))
        return self.head(z.reshape(z.shape[0], -1))


@pytest.fixture(scope="module")
def cnn():
    """Random weights do: what counts is that values stay."""
    torch.manual_seed(0)
    return SmallCnn().eval()


@pytest.mark.parametrize("batch", ["free", "fixed"])
@pytest.mark.parametrize(("metric", "max_side"), [("cosine", 0), ("cosine", 1), ("squared_euclidean", 3)])
def test_an_exposed_layer_of_a_torch_model_equals_its_hook(cnn, tmp_path, batch, metric, max_side):
    """Reduced as the export of softkin's own models reduces it, whatever the batch size of the export."""
    x = np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype(np.float32)
    shapes = ({0: torch.export.Dim("batch")},) if batch == "free" else None
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            cnn, (torch.from_numpy(x[:2]),), input_names=["images"], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    proto = program.model_proto
    convolutions = [n.output[0] for n in proto.graph.node if n.op_type == "Conv"]
    seen = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, z, name=name: seen.update({name: z}))
        for name, layer in zip(convolutions, (cnn.conv1, cnn.conv2), strict=True)
    ]

    found = expose(proto, x, layers=convolutions, metric=metric, max_dim=64, seed=5, max_side=max_side)

    path = tmp_path / "exposed.onnx"
    path.write_bytes(found.model)
    network = Network(path, device="cpu")
    for rows in (1, 7, 12):
        with torch.no_grad():
            logits = cnn(torch.from_numpy(x[:rows]))
        outputs = network.run(x[:rows])
        np.testing.assert_allclose(outputs["logits"], logits.numpy(), atol=1e-5)
        for i, name in enumerate(convolutions):
            side, width = pooling(seen[name].shape[1:], max_side)
            assert (side > 1) == bool(max_side)
            reducer = Reducer(width, max_dim=64, metric=metric, seed=5 + i, side=side)
            assert found.layers[i].reducer == reducer.description
            expected = reducer(seen[name]).numpy()
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(outputs[representation_output(name)], expected, atol=1e-5 * scale)
    for hook in hooks:
        hook.remove()
    assert found.changes == (() if batch == "free" else ("freeing the batch axis from 2",))
