"""Time against the size of the bank: a straight line, and its slope is what a row costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from catalogue import CEILING, FLAT, FLOAT16, INT8, SOFTKIN, Case

SIZES = (4_000, 16_000, 60_000, 250_000, 1_000_000)
CASES = tuple(Case(rows=n, dim=128, classes=10, rounds=21, seconds=12) for n in SIZES)
CANDIDATES = (SOFTKIN, INT8, FLOAT16, CEILING, FLAT)


def fit_lines(cases: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Per batch size and candidate the least-squares line t = a + b N.

    Args:
        cases: results of `CASES`.

    Returns:
        `a_ms`; `b_ns`, nanoseconds per row; `r2`, the share of the variance that the line explains.
    """
    n = np.array([case["rows"] for case in cases], np.float64)
    fits: dict[str, dict[str, dict[str, float]]] = {}
    for batch, candidates in cases[0]["timings"].items():
        fits[batch] = {}
        for name in candidates:
            if not all(name in case["timings"][batch] for case in cases):
                continue
            t = np.array([case["timings"][batch][name]["milliseconds"] for case in cases])
            (b, a), *_ = np.polyfit(n, t, 1, full=True)
            unexplained = np.square(t - a - b * n).sum() / np.square(t - t.mean()).sum()
            fits[batch][name] = {"a_ms": round(a, 3), "b_ns": round(1e6 * b, 3), "r2": round(1 - unexplained, 5)}
    return fits
