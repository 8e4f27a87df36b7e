"""Networks by import path: hooks only, and what is unfit is refused before training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from own_networks import SmallNet
from softkin import Detector
from softkin.errors import DataError, RecipeError
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.cli import main
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.model_config import ModelConfig
from softkin_training.models import build_model
from softkin_training.own_model import HookedClassifier
from softkin_training.train import load_checkpoint, train

pytestmark = pytest.mark.training

LAYERS = ["features.3", "features.5", "classifier.1"]
OWN = [
    "model.kind=import",
    "model.path=own_networks:SmallNet",
    "model.channels=[]",
    "model.dense=0",
    "model.dropout=0",
    'loss.layers=["features.3"]',
    f"detector.layers={LAYERS}",
    "training.accelerator=cpu",
    "training.cpu_threads=1",
    "training.probe_rows=64",
]


def made(path, layers=(), *, shape=(8, 8), num_classes=8, **arguments):
    """A classifier of an imported network."""
    config = ModelConfig(kind="import", path=f"own_networks:{path}", arguments=arguments)
    return build_model(config, shape, num_classes, 4.0, 2.0, layers=layers)


def test_hidden_layers_are_what_the_named_modules_hand_on():
    """By name, in the order in which they run, whatever the order they are asked for; the network is not changed."""
    torch.manual_seed(0)
    model = made("SmallNet", ["classifier.1", "features.3"]).eval()
    torch.manual_seed(0)
    alone = SmallNet().eval()
    x = torch.rand(5, 8, 8)

    logits, hidden = model.forward_with_hidden(x)
    z = ((x - 4) / 2).unsqueeze(1)

    assert tuple(hidden) == model.hidden_layers == ("features.3", "classifier.1")
    assert torch.equal(logits, alone(z))
    assert torch.equal(hidden["features.3"], alone.features[:4](z))
    assert all(torch.equal(value, alone.state_dict()[n]) for n, value in model.network.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_arguments_reach_the_network_and_rows_come_as_they_are_where_wished():
    """`arguments` by name; standardize = false."""
    model = made("SmallNet", ["features.0"], width=4)
    config = ModelConfig(kind="import", path="own_networks:SmallNet", standardize=False)
    raw = build_model(config, (8, 8), 8, 4.0, 2.0, layers=["features.0"])

    assert model.forward_with_hidden(torch.rand(2, 8, 8))[1]["features.0"].shape == (2, 4, 8, 8)
    assert torch.equal(raw.preprocess(torch.full((1, 8, 8), 7, dtype=torch.uint8)), torch.full((1, 1, 8, 8), 7.0))


def test_proving_leaves_weights_statistics_and_random_state():
    """Batch norm has seen nothing yet, and the next random numbers are those of a run without the proof."""
    torch.manual_seed(0)
    SmallNet()
    expected = torch.rand(3)
    torch.manual_seed(0)
    model = made("SmallNet", ["features.3"])

    assert torch.equal(torch.rand(3), expected)
    assert int(model.network.features[1].num_batches_tracked) == 0


@pytest.mark.slow
def test_a_network_of_the_users_own_goes_all_the_way(tmp_path, capsys):
    """Train, export, build, score: the representations in the export are those of the hooks."""
    settings = [argument for s in (*OWN, "training.epochs=6") for argument in ("--set", s)]

    assert main(["run", "digits", "--out", str(tmp_path), "--quiet", *settings]) == 0

    recipe = load_recipe("digits", [*OWN, "training.epochs=6"])
    dataset = load_dataset(recipe)
    detector = Detector.load(tmp_path / "bundle")
    assert [layer.name for layer in detector.manifest.layers] == LAYERS
    assert detector.score(dataset.test.x).is_outlier.mean() < 0.12
    assert detector.score(dataset.outliers["noise"]).is_outlier.mean() > 0.9
    _, hidden = load_checkpoint(recipe, dataset, tmp_path).forward_with_hidden(torch.from_numpy(dataset.test.x))
    found = Network(tmp_path / "model.onnx", device="cpu").run(dataset.test.x)[representation_output("classifier.1")]
    unit = torch.nn.functional.normalize(hidden["classifier.1"]).detach().numpy()
    np.testing.assert_allclose(found, unit, atol=1e-4)


@pytest.mark.slow
def test_a_mask_of_infinities_is_no_weight_that_went_wrong(tmp_path, capsys):
    """Attention keeps one as a buffer; the run was ended after its first epoch, and the learning rate blamed."""
    network = ["model.path=own_networks:Attentive", 'loss.layers=["hidden"]', 'detector.layers=["hidden"]']
    settings = [*OWN, "training.epochs=2", *network]
    arguments = [argument for s in settings for argument in ("--set", s)]

    assert main(["run", "digits", "--out", str(tmp_path), "--quiet", *arguments]) == 0, capsys.readouterr().err

    assert Detector.load(tmp_path / "bundle").manifest.layers[0].name == "hidden"


@pytest.mark.slow
def test_two_processes_import_the_network_each(tmp_path):
    """Also from the current directory; batch norm's statistics are one process's, so the checkpoint is one model's."""
    recipe = load_recipe("digits", [*OWN, "training.epochs=2", "training.devices=2"])
    dataset = load_dataset(recipe)

    result = train(recipe, dataset, tmp_path, progress=False)

    assert result.history[-1]["test_accuracy"] > 0.3
    assert int(result.model.network.features[1].num_batches_tracked) > 0


def test_the_current_directory_is_searched(tmp_path, monkeypatch):
    """`softkin-train` lives elsewhere; the user's module need not be installed."""
    (tmp_path / "just_written.py").write_text("from torch import nn\ndef make(n): return nn.Linear(64, n)\n")
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(kind="import", path="just_written:make", arguments={"n": 8})

    with pytest.raises(RecipeError, match="no layer 'x'"):
        build_model(config, (64,), 8, 0.0, 1.0, layers=["x"])


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        ("no_such_module:net", {}, ["cannot import no_such_module", "PYTHONPATH"]),
        ("own_networks:NoNet", {}, ["has no 'NoNet'", "SmallNet"]),
        ("own_networks:ALREADY_MADE", {}, ["which is a Linear", "name a class"]),
        ("own_networks:no_network", {}, ["makes a list", "torch.nn.Module"]),
        ("own_networks:SmallNet", {"depth": 3}, ["model.arguments = {'depth': 3} fails", "depth"]),
        ("own_networks:Lazy", {}, ["lazy parameters"]),
        ("own_networks:frozen", {}, ["no parameter that can be trained"]),
    ],
    ids=["module", "name", "instance", "no network", "arguments", "lazy", "frozen"],
)
def test_what_is_no_network_is_refused(path, arguments, words):
    """The message says what was found and what to do."""
    with pytest.raises(RecipeError) as refusal:
        build_model(ModelConfig(kind="import", path=path, arguments=arguments), (8, 8), 8, 0.0, 1.0)

    assert [word for word in words if word not in str(refusal.value)] == []


@pytest.mark.parametrize(
    ("path", "arguments", "layer", "error", "words"),
    [
        ("SmallNet", {}, "feature.3", RecipeError, ["no layer 'feature.3'", "'features.3', "]),
        (
            "SmallNet",
            {},
            "features.1",
            RecipeError,
            ["'features.1' hands on is changed in place", "inplace=False"],
        ),
        ("SmallNet", {"classes": 7}, "features.3", DataError, ["returns [3, 7]", "8 classes", "logits [3, 8]"]),
        ("Unfit", {}, "pair", RecipeError, ["'pair' (Pair) hands on a tuple, not a tensor"]),
        ("Unfit", {}, "turned", RecipeError, ["'turned' hands on torch.float32 [16, 3] for 3 rows", "first axis"]),
        ("Unfit", {}, "unused", RecipeError, ["'unused' is not called"]),
        ("Unfit", {}, "relu", RecipeError, ["'relu' is called more than once"]),
        ("Unfit", {"fault": "random in evaluation"}, "first", RecipeError, ["output", "from call to call"]),
        ("Unfit", {"fault": "no running statistics"}, "first", RecipeError, ["other rows of the batch"]),
        ("Unfit", {"fault": "two outputs"}, "first", DataError, ["returns a tuple", "logits alone"]),
        ("Unfit", {"fault": "two outputs in training"}, "first", DataError, ["returns a tuple in training"]),
        ("Unfit", {"fault": "fails"}, "first", DataError, ["fails in training on rows [1, 8, 8]", "works today"]),
        ("Wider", {}, "both", RecipeError, ["layer 'both'", "[128] in training and [64] in evaluation"]),
    ],
)
def test_what_cannot_be_trained_or_served_is_refused_before_training(path, arguments, layer, error, words):
    """Layer, output, shape: whatever would fail after hours fails at once."""
    with pytest.raises(error) as refusal:
        made(path, [layer], **arguments)

    assert [word for word in words if word not in str(refusal.value)] == []


def test_a_network_that_gives_nan_is_called_that():
    """NaN differs from itself, which must not read as random numbers in evaluation."""

    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.log()

    network = nn.Sequential(nn.Linear(4, 6), Logarithm(), nn.Linear(6, 3))
    constants = {"mean": torch.tensor(0.0), "std": torch.tensor(1.0)}

    with pytest.raises(RecipeError, match="the output of the network has NaN or infinity"):
        HookedClassifier(network, ["1"], image=False, **constants).prove((4,), 3)


def test_a_fit_network_with_the_same_parts_is_accepted():
    """The refusals above are the faults', not the parts'."""
    assert made("Unfit", ["first"]).hidden_layers == ("first",)


@pytest.mark.parametrize("path", ["nets", "nets:", ":make", "my nets:make", "nets/net.py:make"])
def test_a_path_must_name_a_module_and_something_in_it(path):
    """Said when the recipe is read."""
    with pytest.raises(RecipeError, match=r"model\.path is .* must read module:name"):
        load_recipe("digits", [*OWN, f"model.path='{path}'"])


def test_an_imported_network_brings_its_own_widths():
    """Keys of other kinds would do nothing."""
    with pytest.raises(RecipeError, match=r"model\.dropout is 0\.2.*its own"):
        load_recipe("digits", [*OWN, "model.dropout=0.2"])
    with pytest.raises(RecipeError, match=r"model\.arguments is .*belongs to kind = 'import'"):
        load_recipe("digits", ["model.arguments={a=1}"])
