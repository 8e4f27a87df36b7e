"""torch -> ONNX: the exported model is the trained one, or there is no export."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from softkin.errors import DataError, ExportError
from softkin.scorer import Network, reducer_key
from softkin.scorer_graph import representation_output
from softkin_training import export as exporting
from softkin_training.export import TOLERANCE, Reducer, export
from softkin_training.layer_metrics import metric_of
from softkin_training.model_config import ModelConfig
from softkin_training.models import build_model, input_statistics
from softkin_training.own_model import HookedClassifier
from softkin_training.projection import pooled, pooling

pytestmark = pytest.mark.training

LAYERS = ("conv1", "conv2", "dense")
USUAL = {"layers": LAYERS, "metric": "cosine", "max_dim": 64, "seed": 3}


@pytest.fixture(scope="module")
def images():
    """Raw images as a data source stores them."""
    return np.random.default_rng(0).integers(0, 256, size=(20, 12, 12), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(images):
    """An untrained CNN; batch statistics are not the initial ones."""
    torch.manual_seed(0)
    config = ModelConfig(kind="cnn", channels=[8, 16], dense=24, dropout=0.2)
    model = build_model(config, images.shape[1:], 5, *input_statistics(images))
    model.train()
    model(torch.from_numpy(images))
    return model.eval()


@pytest.fixture(scope="module")
def usual(model, images):
    """One export for all tests that look at the usual one: each takes seconds."""
    return export(model, images, **USUAL)


@pytest.fixture
def exported(model, images, usual, tmp_path):
    """The network in onnxruntime, exported as usual but for some changes."""

    def start(**changes) -> Network:
        arguments = USUAL | changes
        path = Path(tmp_path) / "model.onnx"
        path.write_bytes(usual if arguments == USUAL else export(model, images, **arguments))
        return Network(path, device="cpu")

    return start


EACH = {"conv1": "cosine", "conv2": "squared_euclidean", "dense": "cosine"}


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean", EACH], ids=["cosine", "squared_euclidean", "each"])
def test_onnxruntime_reproduces_torch_from_raw_input(model, images, exported, metric):
    """uint8 images in, logits and reduced representations out, for any batch size."""
    network = exported(metric=metric)

    with torch.no_grad():
        logits, hidden = model.forward_with_hidden(torch.from_numpy(images))
        reducers = {
            n: Reducer(hidden[n][0].numel(), max_dim=64, metric=metric_of(metric, n), seed=3 + i)
            for i, n in enumerate(LAYERS)
        }
        expected = {representation_output(n): r(hidden[n]).numpy() for n, r in reducers.items()}
    for rows in (1, 7, 20):
        found = network.run(images[:rows])
        np.testing.assert_allclose(found["logits"], logits[:rows].numpy(), atol=TOLERANCE * float(logits.abs().max()))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value[:rows], atol=TOLERANCE * float(np.abs(value).max()))


@pytest.mark.parametrize("max_side", [2, 4, 5])
def test_larger_maps_are_averaged_down_first(model, images, exported, max_side):
    """Maps of 6 x 6 and 3 x 3, in squares that need not fit; a layer without maps is left as it is."""
    network = exported(metric="squared_euclidean", max_dim=10_000, max_side=max_side)

    with torch.no_grad():
        _, hidden = model.forward_with_hidden(torch.from_numpy(images))
    for name, side in zip(LAYERS, {2: (3, 2, 1), 4: (2, 1, 1), 5: (2, 1, 1)}[max_side], strict=True):
        z = hidden[name].numpy()
        means = pooled(z, side) if side > 1 else z
        outputs = network.run(images)[representation_output(name)]
        np.testing.assert_allclose(outputs, means.reshape(len(z), -1), atol=1e-5 * np.abs(z).max())
        described = f"average-pool({side}x{side})" if side > 1 else "none"
        assert network.metadata[reducer_key(name)] == described


@pytest.mark.parametrize(("shape", "axes"), [((3, 5, 5), (2, 3)), ((5, 5, 3), (1, 2)), ((3, 5, 4), (2, 3))])
def test_maps_become_their_means_wherever_their_channels_are(shape, axes):
    """A network of one's own may have them last."""
    z = torch.randn(4, *shape)
    side, width = pooling(shape, 1)

    found = Reducer(width, max_dim=10, metric="squared_euclidean", seed=0, side=side)(z)

    assert (side, width) == (5, 3)
    torch.testing.assert_close(found, z.mean(dim=axes))


def test_means_of_squares_are_those_of_a_loop():
    """Also where the last ones are cut off."""
    z = np.random.default_rng(0).normal(size=(2, 3, 5, 7))

    found = pooled(z, 3)

    assert found.shape == (2, 3, 2, 3)
    for row, top in enumerate((0, 3)):
        for column, left in enumerate((0, 3, 6)):
            square = z[:, :, top : top + 3, left : left + 3]
            np.testing.assert_allclose(found[:, :, row, column], square.mean(axis=(2, 3)))


def test_wide_layers_are_projected_and_narrow_ones_kept(images, exported):
    """The metadata say how; cosine representations have unit norm."""
    network = exported()
    found = network.run(images)

    assert network.metadata[reducer_key("conv1")] == "gaussian-projection(288->64, seed=3)"
    assert network.metadata[reducer_key("dense")] == "none"
    assert {found[representation_output(n)].shape[1] for n in ("conv1", "conv2")} == {64}
    assert found[representation_output("dense")].shape[1] == 24
    for name in LAYERS:
        np.testing.assert_allclose(np.linalg.norm(found[representation_output(name)], axis=1), 1.0, rtol=1e-4)


def test_the_random_projection_keeps_distances():
    """Relative error of a squared distance is about sqrt(2 / dim)."""
    z = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3000)).astype(np.float32))
    reducer = Reducer(3000, max_dim=512, metric="squared_euclidean", seed=0)

    before, after = torch.cdist(z, z) ** 2, torch.cdist(reducer(z), reducer(z)) ** 2

    pairs = ~torch.eye(40, dtype=torch.bool)
    errors = (after / before - 1)[pairs]
    assert float(errors.std()) == pytest.approx((2 / 512) ** 0.5, rel=0.25)
    assert abs(float(errors.mean())) < 0.02


def test_a_layer_just_as_wide_as_allowed_is_not_projected():
    """It would lose digits and keep its width."""
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    reducer = Reducer(8, max_dim=8, metric="squared_euclidean", seed=0)

    assert torch.equal(reducer(z), z)
    assert reducer.description == "none"


def test_a_dead_layer_gives_zeros_not_nan():
    """Normalising a zero row leaves it zero."""
    reducer = Reducer(8, max_dim=4, metric="cosine", seed=0)

    assert reducer(torch.zeros(2, 8)).tolist() == [[0.0] * 4] * 2


def test_the_same_seed_exports_the_same_bytes(model, images, usual):
    """The projection is part of the seed's promise."""
    assert export(model, images, **USUAL) == usual


def test_an_export_that_does_not_reproduce_torch_fails(model, images, monkeypatch):
    """The graph of another model is not accepted; the error names the output and the difference."""
    other = build_model(ModelConfig(kind="cnn", channels=[8, 16], dense=24), images.shape[1:], 5, 100.0, 50.0).eval()
    to_onnx = exporting._to_onnx

    def wrong(module, x, names):
        module.model = other
        return to_onnx(module, x, names)

    monkeypatch.setattr(exporting, "_to_onnx", wrong)
    with pytest.raises(ExportError, match=r"output 'logits' on a batch of 1: onnxruntime and torch differ by"):
        export(model, images, layers=LAYERS, metric="cosine", max_dim=64, seed=0)


class Branching(nn.Module):
    """A network whose way depends on values, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(144, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        h = self.hidden(x.flatten(1))
        return self.head(h + 1 if h.sum() > 0 else h)


def test_a_network_that_torch_cannot_export_is_refused_in_one_line(images, capfd):
    """Torch's pages for its developers are neither printed nor in the message; what to do is."""
    torch.manual_seed(0)
    constants = {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}
    branching = HookedClassifier(Branching(), ["hidden"], image=True, **constants)

    with pytest.raises(ExportError, match=r"torch cannot export the network .*data-dependent.*export step again"):
        export(branching, images, layers=["hidden"], metric="cosine", max_dim=64, seed=0)
    assert "forward" not in "".join(capfd.readouterr())


class Failing(Branching):
    """A network that comes upon something that is not its fault."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, or the error while a graph is made."""
        if torch.compiler.is_exporting():
            raise self.error
        return self.head(self.hidden(x.flatten(1)))


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'x'"), MemoryError("full"), OSError(28, "No space left on device")]
)
def test_what_is_not_the_networks_fault_is_not_blamed_on_it(images, error):
    """A missing package, memory or disk: its own error comes through, also from within torch's."""
    constants = {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}
    failing = HookedClassifier(Failing(error), ["hidden"], image=True, **constants)

    with pytest.raises(type(error), match=str(error.args[-1])):
        export(failing, images, layers=["hidden"], metric="cosine", max_dim=64, seed=0)


def test_an_export_that_finds_no_room_for_its_proof_says_so(model, images, monkeypatch, tmp_path):
    """The network is run from a file in the temporary folder."""
    monkeypatch.setattr(exporting.tempfile, "TemporaryDirectory", lambda: nullcontext(str(tmp_path / "nowhere")))

    with pytest.raises(DataError, match=r"nowhere: cannot write the network \(No such file or directory\); make room"):
        export(model, images, layers=LAYERS, metric="cosine", max_dim=64, seed=3)
