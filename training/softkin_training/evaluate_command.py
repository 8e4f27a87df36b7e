"""`softkin-train evaluate`: its options, what it reads, and what it prints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from softkin.errors import InvalidInputError
from softkin_training.arguments import folder, names, no_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from softkin.manifest import Manifest


def add_evaluate_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument(
        "--inliers",
        required=True,
        type=Path,
        metavar="FILE",
        help="npz with x_test, and y_test if known; a table (.csv, .parquet); or a folder of images, whose folders may "
        "be called like classes",
    )
    sub.add_argument(
        "--outliers",
        required=True,
        type=no_folder,
        nargs="+",
        action="extend",
        metavar="NAME=FILE",
        help="npz files with x_test, tables, or folders of images, that should be flagged; may be repeated",
    )
    sub.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="like --inliers: inliers unseen so far, which give every other score p-values too",
    )
    sub.add_argument(
        "--near",
        default="",
        metavar="NAME,NAME",
        help=r"outlier sets close to the known classes: means of their own; write \, for a comma within a name",
    )
    sub.add_argument("--alpha", type=float, metavar="A", help="false-alarm rate; the bundle's default when left out")
    sub.add_argument(
        "--corrupt",
        type=int,
        default=1000,
        metavar="ROWS",
        help="inliers to corrupt, where they are images; 0: none (default: %(default)s)",
    )
    sub.add_argument("--out", required=True, type=folder, metavar="DIR", help="directory for the report")


def evaluate_files(arguments: argparse.Namespace) -> None:
    """Measure BUNDLE on rows from files, print a summary, and write the report into DIR.

    Raises:
        SoftkinError: as `evaluate` and `write_report` do, for files that cannot be read, and for unfit options.
    """
    import numpy as np

    from softkin.bundle import read_manifest
    from softkin_training.elapsed import elapsed
    from softkin_training.evaluate import evaluate, write_report
    from softkin_training.new_rows import read_labelled, why_unlabelled
    from softkin_training.report_terminal import print_summary
    from softkin_training.rows import Rows

    manifest = read_manifest(arguments.bundle)
    outliers = _read_outliers(arguments.outliers, manifest)
    if arguments.corrupt < 0:
        raise InvalidInputError("--corrupt", f"got {arguments.corrupt}; must be 0 or more")

    calibration = None
    if arguments.calibration:
        x, y = read_labelled(arguments.calibration, manifest)
        calibration = x if y is None else Rows(x, y, np.arange(len(y)))
    inliers, labels = read_labelled(arguments.inliers, manifest)
    if labels is None and (why := why_unlabelled(arguments.inliers, manifest)):
        print(why, file=sys.stderr)
    with elapsed("evaluating"):
        report = evaluate(
            arguments.bundle,
            inliers=inliers,
            labels=labels,
            outliers=outliers,
            calibration=calibration,
            alpha=arguments.alpha,
            near=[name for name in names(arguments.near) if name],
            corruption_rows=arguments.corrupt,
        )
    print_summary(report)  # first: it has taken minutes, and the disk may be full
    write_report(report, arguments.out)
    print(f"report: {arguments.out / 'report.html'}")


def _read_outliers(items: list[str], manifest: Manifest) -> dict[str, NDArray[np.generic]]:
    """The rows of each NAME=FILE, by name."""
    from softkin_training.new_rows import read_inputs

    found: dict[str, NDArray[np.generic]] = {}
    for item in items:
        name, equals, file = item.partition("=")
        if not (name.strip() and equals and file):
            raise InvalidInputError(
                "--outliers", f"got {item!r}; must read NAME=FILE, for instance letters=letters.npz"
            )
        if name != name.encode(errors="replace").decode():  # bytes that no report could hold
            raise InvalidInputError("--outliers", f"got the name {name!a}, which is not in UTF-8; choose another")
        if name in found:
            raise InvalidInputError("--outliers", f"got {name!r} twice; every set needs a name of its own")
        found[name] = read_inputs(Path(file), manifest)
    return found
