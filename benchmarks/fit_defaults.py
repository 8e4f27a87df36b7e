"""What `softkin-train fit` makes of plain classifiers by default, with one choice changed, and what others find.

    python benchmarks/fit_defaults.py [--images NAME=FILE ...] [--out DIR]

Classifiers are scikit-learn's networks of two hidden layers, both of which are compared, on handwritten digits, on
mixtures of Gaussians and, from npz files with x_train, y_train, x_test, y_test, on flattened images. Near outliers are
of classes that the network never saw; far ones are made of the inliers or of nothing, or are the images of another
file. Minutes on two cores. Writes fit_defaults_<machine>_<date> .json and .md: docs/decisions/0028.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from machine import describe_machine
from report import table
from result_files import write_results
from softkin_training.evaluate import OWN, evaluate
from softkin_training.fit import fit_onnx
from softkin_training.fit_config import classifier_config
from softkin_training.report import ScoreReport
from softkin_training.rows import Rows

Floats = NDArray[np.float32]

LAYERS = ["hidden1", "hidden2"]
NEAR = "near"
DEFAULT = "default"
FEWER_ROWS = 2000
"""Of each set that is scored, at most."""
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "density": {"nonconformity": "density"},
    "directions of the last layer too": {"metric": "cosine"},
    "lengths of the first layer too": {"metric": "squared_euclidean"},
    "not whitened": {"whiten": False},
    "density, directions, not whitened": {"nonconformity": "density", "metric": "cosine", "whiten": False},
    "without density": {"joint_parts": ["class_density", "energy"]},
    "without class_density": {"joint_parts": ["density", "energy"]},
    "without energy": {"joint_parts": ["density", "class_density"]},
    "temperature_scale 0.1": {"temperature_scale": 0.1},
}
"""What is changed of the default."""


@dataclass(frozen=True)
class Case:
    """A classifier's rows `[n, numbers]`."""

    family: str
    seed: int
    hidden: tuple[int, int]
    train: tuple[Floats, NDArray[np.int64]]
    calibration: tuple[Floats, NDArray[np.int64]]
    inliers: tuple[Floats, NDArray[np.int64]]
    outliers: dict[str, Floats]


def main() -> None:
    """Fit, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", action="append", default=[], metavar="NAME=FILE", help="npz of flattened images")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args()
    images = {name: np.load(file) for name, _, file in (pair.partition("=") for pair in arguments.images)}
    found: dict[str, dict[str, list[list[float]]]] = {}
    for case in [*digits(), *mixtures(), *flattened(images)]:
        for score, values in measured(case).items():
            found.setdefault(score, {}).setdefault(case.family, []).append(values)
    results = {"machine": describe_machine("cpu"), "variants": VARIANTS, "found": found}
    write_results("fit_defaults", results, markdown(results), arguments.out)


def digits() -> Iterator[Case]:
    """Eight of ten digits; the others are near."""
    bunch = load_digits()
    x, y = bunch.data.astype(np.float32), bunch.target.astype(np.int64)
    for seed, held_out in enumerate([(8, 9), (3, 5), (1, 7)]):
        rng = np.random.default_rng(seed)
        known, labels = kept(x, y, held_out, rng)
        parts = np.split(np.arange(len(known)), [800, 1100])
        own = known[parts[2]]
        far = {
            "inverted": 16 - own,
            "noise": rng.integers(0, 17, (500, x.shape[1])).astype(np.float32),
            "shuffled pixels": own[:, rng.permutation(x.shape[1])],
        }
        near = {NEAR: x[np.isin(y, held_out)]}
        rows = [(known[i], labels[i]) for i in parts]
        yield Case("digits", seed, (64, 32), rows[0], rows[1], rows[2], far | near)


def mixtures(dim: int = 20, classes: int = 6) -> Iterator[Case]:
    """Two Gaussians a class, of any covariance; a seventh class is near."""
    for seed in range(3):
        rng = np.random.default_rng(100 + seed)
        centers = 2 * rng.normal(size=(classes + 1, 2, dim))
        spreads = 0.5 * rng.normal(size=(classes + 1, dim, dim))

        def draw(y: NDArray[np.int64], rng: Any = rng, centers: Any = centers, spreads: Any = spreads) -> Floats:
            noise = np.einsum("nij,nj->ni", spreads[y], rng.normal(size=(len(y), dim)))
            drawn: Floats = (centers[y, rng.integers(0, 2, len(y))] + noise).astype(np.float32)
            return drawn

        labels = [rng.integers(0, classes, n) for n in (6500, 1500, 2000)]
        train, calibration, own = (draw(y) for y in labels)
        outliers = {
            "columns permuted one by one": np.stack([own[rng.permutation(len(own)), j] for j in range(dim)], axis=1),
            "three times as large": 3 * own,
            "one Gaussian": (rng.normal(size=own.shape) * train.std(axis=0)).astype(np.float32),
            NEAR: draw(np.full(1000, classes)),
        }
        rows = list(zip((train, calibration, own), labels, strict=True))
        yield Case("mixtures", seed, (64, 32), rows[0], rows[1], rows[2], outliers)


def flattened(images: dict[str, Any]) -> Iterator[Case]:
    """Eight of ten classes of each file; the test rows of the others are far."""
    for name, file in images.items():
        for seed, held_out in enumerate([(5, 6), (1, 8)]):
            rng = np.random.default_rng(seed)
            x, test = (file[k].reshape(len(file[k]), -1).astype(np.float32) / 255 for k in ("x_train", "x_test"))
            known, labels = kept(x, file["y_train"], held_out, rng)
            own, own_labels = kept(test, file["y_test"], held_out, rng)
            parts = np.split(np.arange(22_000), [20_000])
            others = {n: f["x_test"][:FEWER_ROWS].reshape(-1, x.shape[1]) / 255 for n, f in images.items() if n != name}
            outliers = {n: rows.astype(np.float32) for n, rows in others.items()} | {
                "noise": rng.random((1000, x.shape[1]), np.float32),
                "shuffled pixels": own[:1000, rng.permutation(x.shape[1])],
                NEAR: test[np.isin(file["y_test"], held_out)][:FEWER_ROWS],
            }
            rows = [(known[i], labels[i]) for i in parts]
            inliers = (own[:FEWER_ROWS], own_labels[:FEWER_ROWS])
            yield Case(name, seed, (256, 128), rows[0], rows[1], inliers, outliers)


def kept(
    x: Floats, y: NDArray[Any], held_out: tuple[int, ...], rng: np.random.Generator
) -> tuple[Floats, NDArray[np.int64]]:
    """The rows of the other classes, shuffled, and their labels numbered without gaps."""
    known = rng.permutation(np.flatnonzero(~np.isin(y, held_out)))
    return x[known], np.unique(y[known], return_inverse=True)[1].astype(np.int64)


def measured(case: Case) -> dict[str, list[float]]:
    """Of every variant, and of the scores of others, AUROC and share caught: far, then near."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        accuracy = train(case, folder / "model.onnx")
        print(f"{case.family}, seed {case.seed}: accuracy {accuracy:.3f}", flush=True)
        np.savez(folder / "train.npz", x_train=case.train[0], y_train=case.train[1])
        np.savez(folder / "fresh.npz", x_test=case.calibration[0], y_test=case.calibration[1])
        for variant, options in VARIANTS.items():
            config = classifier_config(layers=LAYERS, name="study", **options)
            files = (folder / "model.onnx", folder / "train.npz", folder / "out")
            fit_onnx(*files, config, calibration=folder / "fresh.npz")
            report = evaluate(
                folder / "out" / "bundle",
                inliers=case.inliers[0],
                labels=case.inliers[1],
                outliers=case.outliers,
                calibration=Rows(*case.calibration, np.arange(len(case.calibration[0]))),
                near=[NEAR],
                corruption_rows=0,
                compare=variant == DEFAULT,
            )
            found[variant] = summary(report.scores[OWN])
            others = {s.title: summary(s) for s in report.scores.values() if not s.source.startswith("softkin")}
            found |= {title: values for title, values in others.items() if title != report.scores[OWN].title}
    return found


def train(case: Case, path: Path) -> float:
    """Write the classifier as ONNX, logits out, and return its accuracy on inliers."""
    x, y = case.train
    low, span = x.mean(axis=0), x.std(axis=0) + 1e-6
    network = MLPClassifier(case.hidden, max_iter=15, random_state=case.seed, batch_size=64, alpha=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fifteen epochs it is
        network.fit((x - low) / span, y)
    arrays = {"low": low, "span": span}
    nodes = [helper.make_node("Sub", ["x", "low"], ["centered"]), helper.make_node("Div", ["centered", "span"], ["0"])]
    for i, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        arrays |= {f"w{i}": weights, f"b{i}": bias}
        last = i == len(case.hidden)
        out = "logits" if last else f"sum{i}"
        nodes.append(helper.make_node("Gemm", [f"hidden{i}" if i else "0", f"w{i}", f"b{i}"], [out]))
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"hidden{i + 1}"]))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", x.shape[1]), ("logits", len(network.classes_)))
    ]
    constants = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()]
    graph = helper.make_graph(nodes, "classifier", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return float(network.score((case.inliers[0] - low) / span, case.inliers[1]))


def summary(score: ScoreReport) -> list[float]:
    """Means: far AUROC, far caught, near AUROC, near caught."""
    far = [name for name in score.outliers if name != NEAR]
    return [v for names in (far, [NEAR]) for v in (score.mean("auroc", names), score.caught(names) or 0.0)]


def markdown(results: dict[str, Any]) -> Iterable[str]:
    """The report."""
    found, m = results["found"], results["machine"]
    families = {family: len(cases) for family, cases in found[DEFAULT].items()}
    yield f"# What `softkin-train fit` compares by default, {m['date']}"
    yield ""
    yield f"{m['processor']}, {m['cores']} cores. Networks: " + ", ".join(f"{n} {f}" for f, n in families.items()) + "."
    yield "Means over networks of far AUROC / caught at alpha = 0.05, near AUROC / caught; last, over all families."
    means = {s: {f: np.mean(cases, axis=0) for f, cases in by.items()} for s, by in found.items()}
    means = {s: by | {"all": np.mean(list(by.values()), axis=0)} for s, by in means.items()}
    for title, own in (("softkin", True), ("Other scores of the same networks", False)):
        chosen = [s for s in means if (s in VARIANTS) is own]
        order = list(VARIANTS).index if own else lambda s: -means[s]["all"][0]
        yield ""
        yield f"## {title}"
        cells = [
            [s, *("{:.3f} / {:.3f}, {:.3f} / {:.3f}".format(*means[s][f]) for f in (*families, "all"))]
            for s in sorted(chosen, key=order)
        ]
        yield from table(["score", *families, "all"], cells)


if __name__ == "__main__":
    main()
