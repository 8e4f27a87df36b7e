"""ResNet-18 for small images."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from softkin.errors import DataError
from softkin.scorer import Network
from softkin_training.export import TOLERANCE, export
from softkin_training.losses import LayeredSnnl
from softkin_training.model_config import ModelConfig
from softkin_training.models import build_model
from softkin_training.network_head import find_head
from softkin_training.resnet import resnet18_blocks

pytestmark = pytest.mark.training

RESNET = ModelConfig(kind="resnet18")


def images(rows=4, size=32, channels=3):
    """Raw images."""
    shape = (rows, size, size, channels) if channels > 1 else (rows, size, size)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def made(shape=(32, 32, 3), classes=10):
    """An untrained network."""
    torch.manual_seed(0)
    return build_model(RESNET, shape, classes, 120.0, 60.0)


def test_it_is_as_large_as_published():
    """11.17 million parameters for 10 classes of colour images."""
    assert sum(p.numel() for p in made().parameters()) == 11_173_962


def test_four_stages_halve_the_map_three_times():
    """No pooling in the stem: the first stage sees the full map."""
    logits, hidden = made().eval().forward_with_hidden(torch.from_numpy(images()))

    assert logits.shape == (4, 10)
    assert {name: tuple(h.shape[1:]) for name, h in hidden.items()} == {
        "layer1": (64, 32, 32),
        "layer2": (128, 16, 16),
        "layer3": (256, 8, 8),
        "layer4": (512, 4, 4),
    }
    assert tuple(hidden) == RESNET.hidden_layers


def test_a_block_adds_its_input_to_what_it_computes():
    """With the second batch norm's scale at 0 the first stage's blocks hand on what they got."""
    stage = resnet18_blocks(3)[0]["layer1"].eval()
    for block in list(stage)[3:]:
        torch.nn.init.zeros_(block.residual[-1].weight)
    x = torch.rand(2, 3, 8, 8)

    assert torch.allclose(stage(x), stage[:3](x))


def test_one_step_with_the_loss_on_three_stages_lowers_it():
    """Cross-entropy plus SNNL, on the batch it was taken on; every parameter gets a gradient."""
    model = made((8, 8), 3).train()
    x, y = torch.from_numpy(images(12, 8, 1)), torch.arange(12) % 3
    snnl = LayeredSnnl(["layer1", "layer2", "layer3"], metric="cosine")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def objective():
        logits, hidden = model.forward_with_hidden(x)
        return torch.nn.functional.cross_entropy(logits, y) - 0.1 * sum(snnl(hidden, y).values())

    before = objective()
    before.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    optimizer.step()

    with torch.no_grad():
        assert float(objective()) < before.item()


@pytest.mark.slow
def test_the_export_agrees_after_batch_norm_has_seen_data(tmp_path):
    """Running statistics, not the batch's; and the head is found by the scores that need it."""
    model = made((16, 16, 3)).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.from_numpy(images(8, 16)))
    x = images(5, 16)
    serialized = export(model, x, layers=["layer2", "layer4"], metric="cosine", max_dim=64, seed=0)
    path = tmp_path / "model.onnx"
    path.write_bytes(serialized)

    found = Network(path, device="cpu").run(x)["logits"]
    logits = model(torch.from_numpy(x)).detach().numpy()

    assert np.abs(found - logits).max() <= TOLERANCE * np.abs(logits).max()
    head = find_head(onnx.load(path))
    assert head is not None
    assert head.weight.shape == (10, 512)


def test_rows_that_are_no_images_are_refused():
    """The message says which kind takes them."""
    with pytest.raises(DataError, match=r"'resnet18' needs rows \[H, W\].*use kind = 'mlp'"):
        made((64,))
