"""What `serving.py` serves: banks of vectors, and the recipe's network with the recipe's bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softkin.converters import array_to_tensor
from softkin.v1 import outlier_pb2 as pb
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import fit_config
from softkin_training.run import build_step, export_step
from softkin_training.train import train

DIM = 64
IMAGE = (28, 28)


def vectors(folder: Path, rows: int) -> Path:
    """A bundle of vectors around ten centres: 20 % of them calibrate, `rows` are the bank."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows * 5 // 4)
    x = 2 * rng.normal(size=(10, DIM))[y] + rng.normal(size=(len(y), DIM))
    folder.mkdir(parents=True)
    np.savez(folder / "vectors.npz", x_train=x.astype(np.float32), y_train=y)
    fit_embeddings(folder / "vectors.npz", folder, fit_config(name="vectors", layers=["embedding"]))
    return folder / "bundle"


def network(folder: Path) -> Path:
    """The bundle that the recipe fashion_mnist makes, of noise: how fast it is does not depend on its weights."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "noise.npz",
        class_names=[str(j) for j in range(10)],
        **{f"x_{part}": images(rng, n) for part, n in (("train", 22_000), ("test", 100))},
        **{f"y_{part}": rng.integers(0, 10, n) for part, n in (("train", 22_000), ("test", 100))},
    )
    changes = [f"data.path={folder / 'noise.npz'}", "data.calibration_rows=1500", "training.epochs=1"]
    recipe = load_recipe("fashion_mnist", changes)
    dataset = load_dataset(recipe)
    train(recipe, dataset, folder, progress=False)
    export_step(recipe, dataset, folder)
    build_step(recipe, dataset, folder)
    return folder / "bundle"


def images(rng: np.random.Generator, n: int) -> NDArray[np.uint8]:
    """`[n, 28, 28]` of noise."""
    return rng.integers(0, 256, (n, *IMAGE), dtype=np.uint8)


def request(file: Path, x: NDArray[np.generic]) -> Path:
    """A file with one serialised ScoreRequest."""
    file.write_bytes(pb.ScoreRequest(inputs=array_to_tensor(x)).SerializeToString())
    return file
