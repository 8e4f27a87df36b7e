"""Classifiers with named hidden layers and preprocessing inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softkin.errors import DataError
from softkin_training.model_config import ModelConfig
from softkin_training.models import build_model, input_statistics

pytestmark = pytest.mark.training

MLP = ModelConfig(kind="mlp", hidden=[12, 6], dropout=0.5)
CNN = ModelConfig(kind="cnn", channels=[4, 6], dense=10, dropout=0.5)

INPUTS = {
    "mlp on features": (MLP, (7,), np.float32),
    "mlp on an image": (MLP, (8, 8), np.uint8),
    "cnn on 8x8": (CNN, (8, 8), np.uint8),
    "cnn on 28x28": (CNN, (28, 28), np.uint8),
    "cnn on odd colour images": (CNN, (9, 11, 3), np.float64),
}


def rows(shape, dtype, num_rows=5):
    """Raw rows with values 0..255."""
    return np.random.default_rng(0).integers(0, 256, size=(num_rows, *shape)).astype(dtype)


def made(config, shape, dtype, num_classes=3):
    """A model in eval mode and rows for it."""
    torch.manual_seed(0)
    x = rows(shape, dtype)
    return build_model(config, shape, num_classes, *input_statistics(x)).eval(), torch.from_numpy(x)


@pytest.mark.parametrize("case", INPUTS)
def test_raw_rows_give_logits_and_every_hidden_layer_by_name(case):
    """The names are the recipe's, in order; activations are what the next layer reads."""
    config, shape, dtype = INPUTS[case]
    model, x = made(config, shape, dtype)
    logits, hidden = model.forward_with_hidden(x)

    assert logits.shape == (5, 3)
    assert tuple(hidden) == model.hidden_layers == config.hidden_layers
    assert torch.equal(model(x), logits)
    assert torch.equal(model.head(hidden[model.hidden_layers[-1]]), logits)
    assert all(bool((h >= 0).all()) and bool((h > 0).any()) for h in hidden.values())


def test_convolutional_activations_are_maps_and_dense_ones_vectors():
    """Each convolutional layer halves the image; nothing is flattened before it must be."""
    model, x = made(CNN, (28, 28), np.uint8)
    _, hidden = model.forward_with_hidden(x)

    assert {name: tuple(h.shape[1:]) for name, h in hidden.items()} == {
        "conv1": (4, 14, 14),
        "conv2": (6, 7, 7),
        "dense": (10,),
    }


@pytest.mark.parametrize("case", INPUTS)
def test_a_row_does_not_depend_on_its_batch_mates_when_serving(case):
    """In eval mode neither dropout nor batch norm couples rows, and calls repeat exactly."""
    config, shape, dtype = INPUTS[case]
    model, x = made(config, shape, dtype)

    assert torch.equal(model(x), model(x))
    assert torch.allclose(model(x[:1]), model(x)[:1], atol=1e-6)


@pytest.mark.parametrize("case", INPUTS)
def test_preprocessing_is_part_of_the_model(case):
    """Shifted and scaled input with statistics to match gives the same logits."""
    config, shape, dtype = INPUTS[case]
    model, x = made(config, shape, dtype)
    scaled = x.double().numpy() * 3 + 40
    torch.manual_seed(0)
    other = build_model(config, shape, 3, *input_statistics(scaled)).eval()

    assert torch.allclose(other(torch.from_numpy(scaled)), model(x), atol=1e-4)


def test_channels_come_last_in_raw_images():
    """[B, H, W, C] is read as C channels of an H x W image."""
    model, x = made(CNN, (8, 8, 3), np.uint8)
    conv = model.blocks["conv1"][0]
    expected = torch.nn.functional.conv2d(
        ((x.float() - model.mean) / model.std).permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1
    )

    found = []
    conv.register_forward_hook(lambda _module, _inputs, output: found.append(output))

    model(x)

    assert torch.allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected"), [((6, 7), (7,)), ((6, 4, 4), ()), ((6, 4, 4, 3), (3,))], ids=["features", "grey", "colour"]
)
def test_statistics_standardise_the_input(shape, expected):
    """Per feature, per image set or per channel; standardised rows have mean 0 and deviation 1."""
    x = np.random.default_rng(1).normal(5, 3, size=shape)
    mean, std = input_statistics(x)
    z = (x - mean) / std

    assert mean.shape == std.shape == expected
    assert (z.mean(), z.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))


def test_a_constant_feature_does_not_divide_by_zero():
    """Where nothing varies, std is 1."""
    _, std = input_statistics(np.array([[1.0, 2.0], [1.0, 4.0]]))

    assert std.tolist() == [1.0, 1.0]


def test_what_rounding_leaves_of_a_constant_feature_is_no_unit():
    """Sums of 0.1 do not come out even: a row that differed by a thousandth would lie 10^12 deviations away."""
    x = np.stack([np.full(1000, 0.1), np.full(1000, 1e-42) * np.arange(1000), np.arange(1000) * 1e-30], axis=1)

    mean, std = input_statistics(x)

    assert std[:2].tolist() == [1.0, 1.0]  # the second is less than a deviation in float32 can be
    assert std[2] == pytest.approx(x[:, 2].std())
    assert mean == pytest.approx(x.mean(axis=0), rel=1e-9, abs=0)


def test_weights_follow_the_random_state():
    """The same torch seed makes the same model."""
    first, again = (made(CNN, (8, 8), np.uint8)[0].state_dict() for _ in range(2))

    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize(
    ("config", "shape", "word"),
    [
        (CNN, (64,), "use kind = 'mlp'"),
        (ModelConfig(kind="cnn", channels=[2, 2, 2, 2], dense=4), (8, 8), "8x8 allows 3"),
    ],
    ids=["no image", "image too small"],
)
def test_a_cnn_refuses_rows_it_cannot_read(config, shape, word):
    """The message says what the rows allow."""
    with pytest.raises(DataError, match=word):
        build_model(config, shape, 3, 0.0, 1.0)
