"""The files that the evidence of docs/paper.md is made from: smaller parts of data sets, and outliers made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images

Images = NDArray[np.uint8]

TRAIN_ROWS, TEST_ROWS, OUTLIER_ROWS = 18_000, 5_000, 2_000
"""First rows of the training split (calibration rows among them) and of the test split; rows of an outlier set."""
MADE_ROWS, SIZE = 1_000, 28
LUMA = np.array([0.299, 0.587, 0.114])


def write_data(
    out: Path, *, fashion_mnist: Path, mnist: Path, notmnist: Path, textures: Path | None
) -> dict[str, dict[str, Path]]:
    """Write `.npz` files into `out`.

    Args:
        out: folder, made if missing.
        fashion_mnist: npz with x_train, y_train, x_test, y_test, class_names; uint8 `[n, 28, 28]`.
        mnist: likewise.
        notmnist: npz with x_test.
        textures: npz with x_test of colour images, uint8 `[n, H, W, 3]`, H and W at least 28; left out when None.

    Returns:
        By recipe, its far outliers by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, path in {"fashion_mnist": fashion_mnist, "mnist": mnist}.items():
        with np.load(path, allow_pickle=False) as d:
            train = {k: d[k][:TRAIN_ROWS] for k in ("x_train", "y_train")}
            test = {k: d[k][:TEST_ROWS] for k in ("x_test", "y_test")}
            np.savez(out / f"{name}.npz", **train, **test, class_names=d["class_names"])
            np.savez(out / f"{name}_outliers.npz", x_test=d["x_test"][:OUTLIER_ROWS])
    with np.load(notmnist, allow_pickle=False) as d:
        x = d["x_test"]
        np.savez(out / "notmnist.npz", x_test=x[:: max(1, len(x) // OUTLIER_ROWS)][:OUTLIER_ROWS])
    rng = np.random.default_rng(0)
    np.savez(out / "digits.npz", x_test=np.rint(_enlarged(load_digits().images) * 255 / 16).astype(np.uint8))
    photos = [_grey(image) for image in load_sample_images().images]
    np.savez(out / "photos.npz", x_test=np.stack([_patch(photos[i % len(photos)], rng) for i in range(MADE_ROWS)]))
    np.savez(out / "noise.npz", x_test=rng.integers(0, 256, size=(MADE_ROWS, SIZE, SIZE), dtype=np.uint8))
    common = {"notMNIST": out / "notmnist.npz", "photos": out / "photos.npz"}
    if textures is not None:
        with np.load(textures, allow_pickle=False) as d:
            top, left = ((n - SIZE) // 2 for n in d["x_test"].shape[1:3])
            grey = _grey(d["x_test"])[:, top : top + SIZE, left : left + SIZE]
        np.savez(out / "textures.npz", x_test=grey)
        common["textures"] = out / "textures.npz"
    common["noise"] = out / "noise.npz"
    # scikit-learn's digits are digits: far from clothes, but no outliers to MNIST.
    return {
        "fashion_mnist": {"MNIST": out / "mnist_outliers.npz", "digits": out / "digits.npz", **common},
        "mnist": {"Fashion-MNIST": out / "fashion_mnist_outliers.npz", **common},
    }


def _grey(x: NDArray[Any]) -> Images:
    return np.rint(x.astype(np.float64) @ LUMA).astype(np.uint8)


def _patch(image: Images, rng: np.random.Generator) -> Images:
    top, left = (rng.integers(n - SIZE + 1) for n in image.shape)
    return image[top : top + SIZE, left : left + SIZE]


def _enlarged(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear, `[n, 8, 8]` to `[n, SIZE, SIZE]`."""
    n = images.shape[1]
    at = np.clip((np.arange(SIZE) + 0.5) * n / SIZE - 0.5, 0, n - 1)
    low = np.minimum(at.astype(int), n - 2)
    share = at - low
    rows = images[:, low] * (1 - share)[:, None] + images[:, low + 1] * share[:, None]
    return rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
