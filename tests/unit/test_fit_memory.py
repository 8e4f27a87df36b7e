"""How often `fit` holds the rows of a large bank in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from softkin_training.expose import EMBEDDING
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import FitConfig

ROWS, WIDTH = 40_000, 64


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "as they are"])
def test_rows_are_in_memory_as_read_and_as_the_bank_has_them(tmp_path, metric, whiten):
    """Twice, that is, and what goes through both in parts; what onnxruntime holds is not counted here."""
    rng = np.random.default_rng(0)
    for part, n in {"train": ROWS, "test": 300}.items():
        x = rng.standard_normal((n, WIDTH), dtype=np.float32)
        np.savez(tmp_path / f"{part}.npz", **{f"x_{part}": x, f"y_{part}": np.arange(n) % 10})
    config = FitConfig(name="d", layers=[EMBEDDING], bank_rows=ROWS, metric=metric, whiten=whiten)

    tracemalloc.start()
    try:
        fit_embeddings(tmp_path / "train.npz", tmp_path, config, calibration=tmp_path / "test.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 3 * ROWS * WIDTH * np.dtype(np.float32).itemsize
