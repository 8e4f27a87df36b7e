"""Short training runs of the digits recipe."""

from __future__ import annotations

import pytest
import torch

from softkin_training import train as train_module
from softkin_training.config import load_recipe
from softkin_training.train import train

SMALL = [
    "model.channels=[4, 8]",
    "model.dense=16",
    "training.epochs=4",
    "training.accelerator=cpu",
    "training.probe_rows=64",  # of 512 the entanglement takes two thirds of the run
]


def run(dataset, out_dir, *overrides, resume=False):
    """Train the small variant of the digits recipe."""
    return train(load_recipe("digits", [*SMALL, *overrides]), dataset, out_dir, resume=resume, progress=False)


def interrupted_after(epochs, monkeypatch, *arguments):
    """Run until the first batches of a later epoch are asked for, then stop as Ctrl-C would."""
    started = []

    def batches(labels, batch_size, generator):
        started.append(1)
        if len(started) > epochs + 1:  # the loop counts the batches of one epoch before the first
            raise KeyboardInterrupt
        return original(labels, batch_size, generator)

    original = train_module.balanced_batches
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "balanced_batches", batches)
        with pytest.raises(KeyboardInterrupt):
            run(*arguments)


def need(accelerator):
    """Skip where there is no such device."""
    if accelerator == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
