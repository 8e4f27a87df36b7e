"""`softkin-train recalibrate`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from softkin_training.arguments import folder

MOST_FLAGGED = 0.5
"""Of new inliers, without a question whether they are such: more than most drift brings about."""


def add_recalibrate_arguments(sub: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    sub.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    sub.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="FILE",
        help="npz with x_test, and y_test if known; a table (.csv, .parquet); or a folder of images, whose folders may "
        "be called like classes: a plain sample of inliers, unseen by the network, none picked by verdict",
    )
    sub.add_argument("--out", required=True, type=folder, metavar="BUNDLE", help="bundle directory to write")
    sub.add_argument("--grow", action="store_true", help="add the rows to the bundle's own instead of replacing those")
    sub.add_argument(
        "--version", metavar="V", help="of the new bundle; when left out the old one with -r1, then -r2, and a digest"
    )
    sub.add_argument("--alpha", type=float, metavar="A", help="default false-alarm rate; the bundle's when left out")


def recalibrate_from_file(arguments: argparse.Namespace) -> None:
    """Write the new version of BUNDLE, and print what it promises.

    Raises:
        SoftkinError: as `recalibrate` does, and for a file that cannot be read.
    """
    import numpy as np

    from softkin.bundle import read_manifest
    from softkin.conformal import rank
    from softkin.display import describe_class_p_values
    from softkin_training.elapsed import elapsed
    from softkin_training.flag_chance import UNLIKE, chance_of_false_alarms
    from softkin_training.leftovers import tidy
    from softkin_training.new_rows import read_calibrating, why_unlabelled
    from softkin_training.recalibrate import recalibrate
    from softkin_training.rows import Rows
    from softkin_training.table_rows import is_table

    for line in tidy(arguments.out):
        print(line, file=sys.stderr)
    manifest = read_manifest(arguments.bundle)
    x, y = read_calibrating(arguments.data, manifest)
    if y is None and (why := why_unlabelled(arguments.data, manifest)):
        print(why, file=sys.stderr)
    with elapsed("recalibrating"):
        m = recalibrate(
            arguments.bundle,
            arguments.out,
            x if y is None else Rows(x, y, np.arange(len(y))),
            grow=arguments.grow,
            version=arguments.version,
            alpha=arguments.alpha,
            name=f"{arguments.data}{'' if os.path.isdir(arguments.data) or is_table(arguments.data) else ': x_test'}",
        )
    c = m.certificate
    print(
        f"{arguments.out}: {m.name} {m.version}, {m.calibration_size} calibration rows; at alpha {c.alpha:g} "
        f"false alarms are at most {c.false_alarm_bound:.4g} at confidence {c.confidence:g}"
    )
    made = m.provenance["recalibrated"]
    whose = "accuracy of the nearest class" if "embeddings" in m.provenance.get("fit", {}) else "classifier's accuracy"
    accuracy = "" if made["accuracy"] is None else f"; the {whose} on them is {made['accuracy']:.1%}"
    print(f"{manifest.version} flags {made['flagged_before']:.1%} of these rows at alpha {c.alpha:g}{accuracy}")
    n = manifest.calibration_size
    chance = chance_of_false_alarms(round(made["flagged_before"] * len(x)), len(x), rank(c.alpha, n), n)
    if arguments.grow and chance < UNLIKE:
        print(
            f"the chance that so many are by luck is {chance:.2g}: --grow is for more of the same inliers, and of a "
            "mixture alpha is the rate of neither kind;\nleave it out to recalibrate on these alone"
        )
    if made["flagged_before"] > MOST_FLAGGED:
        print("are they inliers, and prepared as the detector takes them? Where not, the new version misses outliers")
    if y is not None and made["accuracy"] is not None and made["accuracy"] <= np.bincount(y).max() / len(y) < 1:
        print("always naming the largest class would do as well: are y_test the indices of classes, in their order?")
    for line in describe_class_p_values(m):
        print(line)
