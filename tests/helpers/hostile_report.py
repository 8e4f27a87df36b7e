"""A report on the tiny bundle whose outlier sets have names that break careless pages, tables and pictures."""

from __future__ import annotations

import dataclasses

import numpy as np

from softkin_training.detection_metrics import rate
from softkin_training.evaluate import evaluate
from softkin_training.report import Corrupted, Corruptions

NAMES = (
    "<script>document.title = 'hacked'; console.error('hacked')</script>",
    '"><img src=http://example.com/x.png onerror=alert(1)>',
    "a|b *c* `d` $x_1$ \\frac{",
    "_hidden 数字 ✓",
)


def hostile_report(tiny):
    """With every part that a report can have, corruptions included."""
    rng = np.random.default_rng(0)
    found = evaluate(
        tiny.path,
        inliers=tiny.inliers,
        labels=np.arange(len(tiny.inliers)) % 3,
        outliers={name: (3 + i) * tiny.outliers[i * 10 : i * 10 + 10] for i, name in enumerate(NAMES)},
        calibration=tiny.calibration,
        near=[NAMES[0]],
    )
    levels = [
        Corrupted(
            kind=kind,
            severity=s,
            level=s / 10,
            flagged=rate(rng.random(80) < 0.05 + s / 6),
            accuracy=0.9 - s / 10,
            accuracy_of_accepted=None if s == 5 else 0.95,
        )
        for kind in ("noise", "blur")
        for s in range(6)
    ]
    corruptions = Corruptions(
        skipped=None, rows=80, units={"noise": "standard deviation", "blur": "<b>"}, levels=levels
    )
    return dataclasses.replace(found, corruptions=corruptions, notes=("a <note> of its own",))
