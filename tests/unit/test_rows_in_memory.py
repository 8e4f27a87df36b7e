"""How often `fit` and `evaluate` hold the rows of a large bank in memory, beside what onnxruntime holds."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from softkin_training import baselines
from softkin_training.evaluate import evaluate
from softkin_training.expose import EMBEDDING
from softkin_training.fit import BUNDLE, fit_embeddings
from softkin_training.fit_config import FitConfig

ROWS, WIDTH = 40_000, 64
OTHERS = 300


def vectors(seed: int, n: int) -> np.ndarray:
    """Of no structure."""
    return np.random.default_rng(seed).standard_normal((n, WIDTH), dtype=np.float32)


@contextmanager
def at_most(times: float) -> Iterator[None]:
    """So many times the rows of the bank, at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < times * ROWS * WIDTH * np.dtype(np.float32).itemsize


def fit(folder, metric="cosine", whiten=True):
    """A bundle whose bank has all rows."""
    for seed, (part, n) in enumerate({"train": ROWS, "test": OTHERS}.items()):
        np.savez(folder / f"{part}.npz", **{f"x_{part}": vectors(seed, n), f"y_{part}": np.arange(n) % 10})
    config = FitConfig(name="d", layers=[EMBEDDING], bank_rows=ROWS, metric=metric, whiten=whiten)
    fit_embeddings(folder / "train.npz", folder, config, calibration=folder / "test.npz")


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize("whiten", [True, False], ids=["whitened", "as they are"])
def test_fit_holds_them_as_read_and_as_the_bank_has_them(tmp_path, metric, whiten):
    """What is made of them on the way goes through both in parts."""
    with at_most(3):
        fit(tmp_path, metric, whiten)


def test_rows_that_calibrate_and_copies_are_left_out_without_copying_the_others(tmp_path):
    """Those of the bank are looked up in what was read."""
    x = vectors(0, ROWS)
    x[-OTHERS:] = x[:OTHERS]
    np.savez(tmp_path / "train.npz", x_train=x, y_train=np.arange(ROWS) % 10)
    del x
    config = FitConfig(name="d", layers=[EMBEDDING], bank_rows=ROWS)

    with at_most(3.3):
        fit_embeddings(tmp_path / "train.npz", tmp_path, config, calibration_share=0.01)


def test_evaluate_holds_them_once(tmp_path, monkeypatch):
    """As they were before whitening, for the scores of others, which look at them in parts."""
    monkeypatch.setattr(baselines, "DISTANCES", ROWS)
    monkeypatch.setattr(baselines, "BANK_ROWS", ROWS // 10)
    fit(tmp_path)

    with at_most(2.5):
        evaluate(
            tmp_path / BUNDLE,
            inliers=vectors(2, OTHERS),
            labels=None,
            outliers={"far": 3 + vectors(3, OTHERS)},
            calibration=vectors(1, OTHERS),
        )
