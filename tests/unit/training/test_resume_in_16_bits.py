"""Training in 16 bits goes on with the scale of the loss that it had: steps at another one may be skipped."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from small_runs import SMALL, interrupted_after, run
from softkin_training import train as train_module
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset

pytestmark = pytest.mark.training


@pytest.fixture
def scalers(monkeypatch):
    """Of every training, in order: on a CPU, and growing every other step."""
    made = []

    def on_cpu(_):
        made.append(torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2))
        return Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=made[-1])])

    monkeypatch.setattr(train_module, "make_fabric", on_cpu)
    return made


def test_the_scale_of_the_loss_survives_an_interruption(scalers, tmp_path, monkeypatch):
    """As weights do; a checkpoint of another precision has none."""
    dataset = load_dataset(load_recipe("digits", SMALL))
    short = ("training.epochs=2", "training.probe_rows=0", "training.batch_size=256")
    run(dataset, tmp_path / "whole", *short)

    interrupted_after(1, monkeypatch, dataset, tmp_path / "stopped", *short)
    run(dataset, tmp_path / "stopped", *short, resume=True)

    whole, stopped, resumed = (scaler.state_dict() for scaler in scalers)
    assert 2.0 < stopped["scale"] < whole["scale"]
    assert resumed == whole
