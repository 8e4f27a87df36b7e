"""Which column of a table was made wrong: counterfactuals beside other ways to name it, on rows with planted errors.

    python benchmarks/counterfactual.py

Tables: scikit-learn's breast cancer, and a made one whose 12 columns follow from 4 that nobody sees. One or two values
of a test row that is not flagged are made wrong: `far` moves them by 5 deviations, `within range` takes them from any
other row, so that only their combination is strange. Of the rows that are flagged afterwards it is told how often the
first column named is a wrong one, and how often those named are all of them and no other.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from machine import describe_machine
from result_files import write_results
from softkin import Detector
from softkin.bundle import read_bundle
from softkin_training.counterfactual import Counterfactuals
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import vectors_config

Floats = NDArray[np.float64]
ROWS, FAR = 200, 5.0
OURS, FROM_NEAREST = SEVERAL = "counterfactual (softkin-train explain)", "the same from the nearest row of the bank"
KINDS = {"one value far": ("far", 1), "two values far": ("far", 2), "one value within range": ("within", 1)}


def made_table(rng: np.random.Generator) -> tuple[Floats, NDArray[np.int64]]:
    """3,000 rows of 3 classes."""
    y = np.arange(3000) % 3
    mixing, centers = rng.normal(size=(3, 12, 4)), 4 * rng.normal(size=(3, 12))
    hidden = rng.normal(size=(3000, 4))
    return np.einsum("nij,nj->ni", mixing[y], hidden) + 0.3 * rng.normal(size=(3000, 12)) + centers[y], y


def with_errors(x: Floats, train: Floats, kind: str, number: int, rng: np.random.Generator) -> tuple[Floats, list[Any]]:
    """Rows with wrong values, and the columns that have them."""
    bad, columns = x.copy(), [rng.permutation(x.shape[1])[:number] for _ in x]
    for row, wrong in zip(bad, columns, strict=True):
        for c in wrong:
            row[c] = (
                row[c] + FAR * train[:, c].std() * rng.choice([-1, 1]) if kind == "far" else rng.choice(train[:, c])
            )
    return bad, columns


class Table:
    """A detector of two thirds of a table, and the ways to explain what it flags.

    Args:
        x: `[n, D]`.
        y: `[n]` labels.
        folder: for the bundle.
    """

    def __init__(self, x: Floats, y: NDArray[np.int64], folder: Path) -> None:
        self.train, self.test = np.split(x, [len(x) * 2 // 3])
        y = y[: len(self.train)]
        np.savez(folder / "t.npz", x_train=self.train, y_train=y)
        fit_embeddings(folder / "t.npz", folder, vectors_config(name="table", standardize=True))
        bundle = read_bundle(folder / "bundle")
        ids = bundle.bank.examples
        self.detector = Detector(bundle)
        alpha = bundle.manifest.default_alpha
        self._counterfactuals = Counterfactuals(self.detector, self.train[ids], ids, alpha=alpha)
        of_class = [self.train[y == c] for c in range(y.max() + 1)]
        self._medians = np.stack([np.median(rows, axis=0) for rows in of_class])
        self._deviations = np.stack([rows.std(axis=0) for rows in of_class])

    def named(self, x: Floats) -> dict[str, list[int]]:
        """Columns of a flagged row `[D]`, by the way in which they are found."""
        scores = self.detector.score(x[None], num_neighbors=1)
        c, near = int(scores.predicted_class[0]), scores.neighbors.ids[0, -1]
        from_nearest = Counterfactuals(self.detector, self.train[near], near, alpha=scores.budget.alpha)
        return {
            OURS: [change.column for change in self._counterfactuals.of(x).changes],
            FROM_NEAREST: [change.column for change in from_nearest.of(x).changes],
            "the value that the class's median replaces best": [self._best(x, self._medians[c])],
            "the value that the nearest row of the bank replaces best": [self._best(x, self.train[near[0]])],
            "most deviations from the class's median": [
                int((np.abs(x - self._medians[c]) / self._deviations[c]).argmax())
            ],
        }

    def _best(self, x: Floats, values: Floats) -> int:
        copies = np.repeat(x[None], len(x), axis=0)
        np.fill_diagonal(copies, values)
        return int(self.detector.score(copies).outlier_score.argmin())


def measure(name: str, table: Table, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Shares of flagged rows, by kind of error and way."""
    found = []
    for error, (kind, number) in KINDS.items():
        clean = table.test[rng.integers(0, len(table.test), ROWS)]
        clean = clean[~table.detector.score(clean).is_outlier]
        bad, columns = with_errors(clean, table.train, kind, number, rng)
        flagged = np.flatnonzero(table.detector.score(bad).is_outlier).tolist()
        named = [table.named(bad[i]) for i in flagged]
        for way in named[0]:
            first = np.mean([n[way][0] in columns[i] for i, n in zip(flagged, named, strict=True)])
            exact = np.mean([{*n[way]} == {*columns[i]} for i, n in zip(flagged, named, strict=True)])
            found.append(
                {"table": name, "error": error, "flagged": len(flagged), "rows": len(bad), "way": way}
                | {"first": float(first), "exact": float(exact) if way in SEVERAL or number == 1 else None}
            )
            print(found[-1], flush=True)
    return found


def main() -> int:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    out = parser.parse_args().out
    cancer, rows, rng = load_breast_cancer(), [], np.random.default_rng(0)
    for name, (x, y) in {"breast cancer": (cancer.data, cancer.target), "made": made_table(rng)}.items():
        order = rng.permutation(len(x))
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, Table(x[order], y[order], Path(folder)), rng)
    results = {"machine": describe_machine("cpu"), "rows": rows}
    lines = ["# Which column was made wrong", "", *(__doc__ or "").split("\n\n", 2)[2].splitlines(), ""]
    lines += [
        "| table | error | flagged | way | first named is wrong | exactly the wrong ones |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        exact = "names one" if r["exact"] is None else f"{r['exact']:.3f}"
        lines.append(
            f"| {r['table']} | {r['error']} | {r['flagged']} of {r['rows']} | {r['way']} | {r['first']:.3f} | {exact} |"
        )
    write_results("counterfactual", results, lines, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
