"""Real scores, row by row, in one small file: so that checks of false alarms need neither the data nor a network.

    softkin-train run fashion_mnist --out DIR --set data.path=fashion_mnist.npz --set data.outliers.MNIST=mnist.npz ...
    python benchmarks/scores.py fashion_mnist --out-of DIR --set data.path=fashion_mnist.npz ...

Writes <recipe>_scores.npz: rows in the order of the run, none of which the network or the bank has seen. Calibration
and test stand apart: the recipe's seed drew the one from the training rows, whoever published the data drew the other.

    SET.outlier_score     [n] float64; SET is calibration, test, or the name of an outlier set
    SET.predicted_class   [n] int8: the network's own class
    SET.true_class        [n] int8: calibration and test alone
    SET.dknn_count        [n] int16: nearest bank rows, 75 in every layer, that are not of the predicted class
    about                 JSON: detector, digest, rows of every set, versions, date
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import describe_machine
from softkin import bundle as bundles
from softkin.bank import PADDING_LABEL
from softkin.detector import Detector
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training.baselines import dknn_nonconformity
from softkin_training.config import load_recipe
from softkin_training.data import Dataset, load_dataset
from softkin_training.row_contents import fingerprint
from softkin_training.run import BUNDLE

CALIBRATION, TEST, SCORE, COUNT = "calibration", "test", ".outlier_score", ".dknn_count"
MOST_OUTLIERS = 10_000
"""Rows kept of an outlier set, the first ones: the file is committed."""

Arrays = dict[str, NDArray[Any]]


def main() -> None:
    """Score, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe of the run")
    parser.add_argument("--out-of", required=True, type=Path, dest="run", metavar="DIR", help="what the run wrote")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="FOLDER")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    dataset, loaded = load_dataset(recipe), bundles.read_bundle(arguments.run / BUNDLE)
    # Under another seed or file some rows called unseen would be rows of training, and the scores would not tell.
    if fingerprint(dataset.train.x) != loaded.manifest.provenance["fingerprints"]["train"]:
        raise SystemExit(f"error: {loaded.path} was trained on other rows; give the recipe and the --set of its run")
    arrays = score(loaded, dataset)
    file = arguments.out / f"{recipe.name}_scores.npz"
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **arrays)
    print(against_bundle(arrays, loaded), *summary(arrays), f"{file}: {file.stat().st_size / 1e3:.0f} kB", sep="\n")


def score(loaded: bundles.Bundle, dataset: Dataset) -> Arrays:
    """Everything that the file holds."""
    detector, network = Detector(loaded, device="cpu"), Network(loaded.path / bundles.MODEL, device="cpu")
    real = loaded.bank.labels != PADDING_LABEL
    labels = loaded.bank.labels[real].astype(np.int64)
    bank = {name: layer.representations(real) for name, layer in loaded.bank.layers.items()}
    inliers = {CALIBRATION: dataset.calibration, TEST: dataset.test}
    sets = {n: x[:MOST_OUTLIERS] for n, x in dataset.outliers.items()} | {n: rows.x for n, rows in inliers.items()}
    arrays: Arrays = {f"{name}.true_class": rows.y.astype(np.int8) for name, rows in inliers.items()}
    for name, x in sets.items():
        scores, found = detector.score(x), network.run(x)
        z = {layer: found[representation_output(layer)] for layer in bank}
        counts_BC = dknn_nonconformity(z, bank, labels, loaded.bank.num_classes)
        arrays[f"{name}{SCORE}"] = scores.outlier_score  # in float32 some rows would tie that do not
        arrays[f"{name}.predicted_class"] = scores.predicted_class.astype(np.int8)
        arrays[f"{name}{COUNT}"] = counts_BC[np.arange(len(x)), scores.predicted_class].astype(np.int16)
    machine = describe_machine("cpu")
    about = {
        "detector": loaded.manifest.name,
        "nonconformity": loaded.manifest.nonconformity,
        "digest": loaded.digest,
        "bank_rows": loaded.manifest.bank_size,
        "rows": {name: len(x) for name, x in sets.items()},
        **{key: machine[key] for key in ("processor", "python", "versions", "date")},
    }
    return arrays | {"about": np.array(json.dumps(about))}


def against_bundle(arrays: Arrays, loaded: bundles.Bundle) -> str:
    """Whether the calibration scores are those that the bundle makes its p-values from."""
    found, expected = np.sort(arrays[f"{CALIBRATION}{SCORE}"]), loaded.calibration.outlier_scores
    if len(found) != len(expected):  # the joint form sets reference rows aside
        return f"calibration: {len(found)} rows, the bundle holds {len(expected)}: not compared"
    apart = float((np.abs(found - expected) / np.maximum(np.abs(expected), 1e-9)).max())
    verdict = "equal to 1e-6" if apart <= 1e-6 else "DIFFERENT"
    return f"calibration scores against the bundle's: {verdict}, largest relative difference {apart:.1e}"


def summary(arrays: Arrays) -> list[str]:
    """A line for each set: its ties, which smoothed p-values break by chance."""
    lines = []
    for name in (key.removesuffix(SCORE) for key in arrays if key.endswith(SCORE)):
        scores, counts = arrays[name + SCORE], arrays[name + COUNT]
        ties = f"score of another row too: {tied(scores):.2%}, in float32 {tied(scores.astype(np.float32)):.2%}"
        lines.append(f"{name}: {len(scores):,} rows; {ties}; dknn_count 0: {(counts == 0).mean():.2%}")
    return lines


def tied(values: NDArray[Any]) -> float:
    """Share of rows whose value another row has too."""
    _, row, times = np.unique(values, return_inverse=True, return_counts=True)
    return float((times[row] > 1).mean())


if __name__ == "__main__":
    main()
