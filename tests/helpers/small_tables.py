"""A recipe for small tables, but for its data and the size of its bank."""

from __future__ import annotations

NETWORK = """
[model]
kind = "mlp"
hidden = [8]
[training]
epochs = 5
batch_size = 16
learning_rate = 1e-2
accelerator = "cpu"
cpu_threads = 1
probe_rows = 0
[detector]
layers = ["dense1"]
"""
