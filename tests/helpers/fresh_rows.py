"""New rows for the tiny bundle of `conftest.py`, as calibration or as requests."""

from __future__ import annotations

import numpy as np

from softkin import Detector
from softkin import bundle as bundles
from softkin_training.row_contents import digests64
from softkin_training.rows import Rows


def inliers(tiny, n, *, seed, spread=1.0):
    """Fresh rows around the centres of the bank's classes; spread 1: about as wide as the classes themselves."""
    rng = np.random.default_rng(seed)
    centers = np.stack([tiny.bank.x[tiny.bank.y == j].mean(axis=0) for j in range(3)])
    width = tiny.bank.x[tiny.bank.y == 0].std(axis=0).mean()
    y = rng.integers(0, 3, n)
    x = centers[y] + spread * width * rng.normal(size=(n, centers.shape[1]))
    return Rows(x.astype(np.float32), y, np.arange(n))


def load(path):
    """The bundle as a detector."""
    return Detector.load(path, device="cpu")


def joined(rows, more):
    """`more` rows of content after `rows`, as examples of the same set."""
    return Rows(np.concatenate([rows.x, more.x]), np.concatenate([rows.y, more.y]), np.arange(len(rows) + len(more)))


def write_npz(path, rows, **changes):
    """The rows as the command reads them."""
    np.savez(path, **{"x_test": rows.x, "y_test": rows.y, **changes})
    return path


def entries(folder):
    """Names of everything in a folder."""
    return sorted(p.name for p in folder.iterdir())


def calibrating(tiny, path):
    """The rows of `tiny.calibration` that calibrate a bundle made of them; the others are references."""
    used = bundles.read_bundle(path).used_rows.calibration
    digests = [digests64(x[None])[0] for x in tiny.calibration.x]
    return tiny.calibration.take(np.flatnonzero(np.isin(digests, used)))
