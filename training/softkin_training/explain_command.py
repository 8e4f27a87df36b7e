"""`softkin-train explain`: its options, and what it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softkin.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from softkin.bundle import Bundle
    from softkin_training.counterfactual import Counterfactual


MOST_COLUMNS = 512
"""Columns of a row that are tried one by one."""
SHOWN = 5
"""Columns of a row that the table shows; JSON has all."""


def add_explain_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="rows: a table (.csv, .parquet), or npz with x_test"
    )
    sub.add_argument(
        "--training",
        required=True,
        type=Path,
        metavar="FILE",
        help="the training rows that the bundle was made of: the same table, or npz with x_train",
    )
    sub.add_argument("--alpha", type=float, metavar="A", help="rate at which rows are flagged; the bundle's by default")
    sub.add_argument("--most", type=int, default=20, metavar="N", help="flagged rows to explain (default: 20)")
    sub.add_argument("--json", action="store_true", help="one JSON object a row")


def explain(arguments: argparse.Namespace) -> None:
    """Print what would have to be otherwise in each flagged row.

    Raises:
        SoftkinError: files cannot be read, rows have no columns, or the training rows are not the bundle's.
    """
    import numpy as np

    from softkin import Detector
    from softkin.bundle import read_bundle
    from softkin.errors import InvalidInputError
    from softkin.manifest import INPUT_COLUMNS
    from softkin_training.counterfactual import Counterfactuals
    from softkin_training.elapsed import elapsed
    from softkin_training.new_rows import as_taken, read_named_inputs

    if arguments.most < 1:
        raise InvalidInputError("--most", f"got {arguments.most}; must be at least 1")
    bundle = read_bundle(arguments.bundle)
    m = bundle.manifest
    if len(m.input_shape) != 1 or m.input_shape[0] > MOST_COLUMNS:
        raise DataError(
            f"{arguments.bundle}: takes rows of {list(m.input_shape)} numbers, and only rows of columns, at most "
            f"{MOST_COLUMNS}, are explained; `softkin score --neighbors 5` shows what others are compared with"
        )
    x, names = read_named_inputs(arguments.data, m)
    x = as_taken(x, m, arguments.data)
    training, ids = _bank_rows(arguments.training, bundle)
    detector = Detector(bundle)
    with elapsed("explaining"):
        scores = detector.score(x, alpha=arguments.alpha)
        flagged = np.flatnonzero(scores.is_outlier).tolist()
        shown = flagged[: arguments.most]
        counterfactuals = Counterfactuals(detector, training, ids, alpha=scores.budget.alpha)
        found = [counterfactuals.of(x[row]) for row in shown]
    columns = m.provenance.get(INPUT_COLUMNS)
    if not columns or len(columns) != x.shape[1]:
        columns = [f"column {i}" for i in range(x.shape[1])]
    called = {} if bundle.bank.names is None else bundle.bank.names.find(ids)
    said = [
        {
            "row": row,
            **({} if names is None else {"name": names[row]}),
            "p_value": float(scores.p_value[row]),
            "predicted_class_name": m.classes[int(scores.predicted_class[row])],
            **_described(f, x[row], columns, called.get(f.example)),
        }
        for row, f in zip(shown, found, strict=True)
    ]
    if arguments.json:
        for row in said:
            print(json.dumps(row, allow_nan=False))
        return
    _print_table(said)
    more = f"; {len(flagged) - len(shown)} more: --most {len(flagged)}" if len(flagged) > len(shown) else ""
    print(f"{len(x)} row{'s' * (len(x) > 1)}, {len(flagged)} flagged at alpha {scores.budget.alpha:g}{more}")


def _bank_rows(path: Path, bundle: Bundle) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """The rows of the bank in the file of training rows, `[n, D]`, and their ids `[n]`."""
    from softkin_training.new_rows import open_table, read_columns
    from softkin_training.npz import read_npz
    from softkin_training.row_contents import BANK_IN_ORDER, fingerprint_in_order
    from softkin_training.table_rows import is_table

    m = bundle.manifest
    x = read_columns(open_table(path, m), m) if is_table(path) else read_npz(path, ("x_train",))["x_train"]
    ids = bundle.bank.examples
    fits = x.ndim == 2 and ids[-1] < len(x)
    if not fits or fingerprint_in_order(x[ids]) != m.provenance.get("fingerprints", {}).get(BANK_IN_ORDER):
        raise DataError(
            f"{path}: is not what the bundle was made of; give the file of its training rows as it was, with the rows "
            "in their order"
        )
    return x[ids], ids


def _described(
    found: Counterfactual, x: NDArray[np.generic], columns: Sequence[str], name: str | None
) -> dict[str, Any]:
    changes = [
        {
            "column": columns[c.column],
            "value": _number(x[c.column]),
            "training_value": _number(found.values[c.column]),
            "p_value": c.p_value,
        }
        for c in found.changes
    ]
    return {"compared_with": {"id": found.example, **({"name": name} if name else {})}, "changes": changes}


def _number(value: np.generic) -> float | int:
    """A number in its own digits: 1.35 of float32 is 1.35000002384 as a float of Python."""
    return int(value) if value.dtype.kind in "iu" else float(str(value))


def _print_table(said: Sequence[dict[str, Any]]) -> None:
    from softkin.display import print_columns, spelled

    headers = ("row", "p-value", "predicted class", "compared with", "column", "is", "there", "p-value then")
    lines: list[list[str]] = []
    for row in said:
        other = spelled(str(row["compared_with"].get("name", row["compared_with"]["id"])))
        first = [spelled(str(row.get("name", row["row"]))), f"{row['p_value']:.4g}"]
        first += [spelled(row["predicted_class_name"]), other]
        changes = [
            [spelled(c["column"]), f"{c['value']:.6g}", f"{c['training_value']:.6g}", f"{c['p_value']:.4g}"]
            for c in row["changes"]
        ] or [[""] * 4]
        if (more := len(changes) - SHOWN) > 0:
            changes = [*changes[:SHOWN], [f"and {more} more", "", "", changes[-1][-1]]]
        lines += [[*(first if i == 0 else [""] * 4), *change] for i, change in enumerate(changes)]
    if lines:
        print_columns(headers, lines, [max(map(len, column)) for column in zip(*lines, strict=True)])
