"""A training that was killed goes on to the weights of one that was not."""

from __future__ import annotations

import json

import pytest
import torch

from killed_training import train_and_kill
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.train import train
from warm_processes import warm_spawning

pytestmark = [pytest.mark.training, pytest.mark.slow]

EPOCHS = 8
SETTINGS = [
    "model.channels=[4, 8]",
    "model.dense=16",
    "model.dropout=0.3",
    f"training.epochs={EPOCHS}",
    "training.batch_size=32",
    "training.accelerator=cpu",
    "training.cpu_threads=1",
    "training.checkpoint_every_epochs=2",
    "training.probe_rows=64",
]
WAYS = {
    "minimized": [],
    "learned": ["loss.temperature=learned", "loss.initial_temperature=0.1"],
    "augmented": ["augmentation.crop_padding=1", "augmentation.rotation_degrees=10"],
    "two processes": ["training.devices=2", "training.batch_size=64"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_training_resumes_to_identical_weights(tmp_path, monkeypatch, way):
    """SIGKILL in the middle of an epoch: weights, temperatures and history are those of an uninterrupted run."""
    warm_spawning(monkeypatch)
    settings = [*SETTINGS, *WAYS[way]]
    recipe = load_recipe("digits", settings)
    dataset = load_dataset(recipe)
    whole = train(recipe, dataset, tmp_path / "whole", progress=False)

    reached = train_and_kill(tmp_path / "cut", settings, after_epochs=3)
    resumed = train(recipe, dataset, tmp_path / "cut", resume=True, progress=False)

    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert reached < EPOCHS
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert untimed(resumed.history) == untimed(whole.history)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "history.jsonl").read_text().splitlines()]
    assert lines == resumed.history
    assert [p.name for p in (tmp_path / "cut").iterdir() if p.name.startswith(".")] == []


def untimed(history):
    """Without what the clock says."""
    return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in history]
