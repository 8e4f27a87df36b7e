"""Every figure of docs/guarantees.md, from real scores: `make guarantees`. About four minutes on two cores.

Writes docs/figures/guarantees_*.png, and the numbers beside them to results/guarantees.json and .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import guarantee_plots
import guarantee_tables
from machine import describe_machine
from softkin.certificate import certified_rank, certify, false_alarm_bound
from softkin.conformal import ScoresByClass, class_conditional_p_values, p_values, rank
from softkin.drift_bets import bets, kept, log_low_bet, staked
from trials import deterministic, mixed_stream, real_scores, realised_rates, select_in_batches, split_p_values, watch

Floats = NDArray[np.float64]

HERE = Path(__file__).parent
ALPHAS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
SPLITS, DRAWS, BATCHES, STREAMS, STEPS = 20_000, 1000, 500, 200, 20_000
RUN_LENGTH = 500_000
"""Rows without drift that the CUSUM is run over."""


def main() -> None:
    """Run all trials, then write numbers and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="FOLDER")
    parser.add_argument("--figures", type=Path, default=HERE.parent / "docs" / "figures", metavar="FOLDER")
    arguments = parser.parse_args()
    machine = describe_machine("cpu")
    found: dict[str, Any] = {"machine": {k: machine[k] for k in ("processor", "cores", "python", "date")}}
    for trial in (false_alarms, certificates, classes, batches, drift_alarms, drift_delays, cusum, limits):
        found[trial.__name__] = trial()
        print(trial.__name__, "done")
    arguments.figures.mkdir(parents=True, exist_ok=True)
    (arguments.out / "guarantees.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "guarantees.md").write_text(
        "\n".join(guarantee_tables.markdown(found, RUN_LENGTH)) + "\n", encoding="utf-8"
    )
    guarantee_plots.plot_all(found, arguments.figures)


def false_alarms() -> dict[str, Any]:
    """Realised share of false alarms at every alpha, by kind of score and formula."""
    found = {}
    for kind, tied in {"density": False, "counts with 60 % ties": True}.items():
        rng = np.random.default_rng(0)
        inliers = real_scores(tied=tied).inliers
        p = split_p_values(inliers, 999, SPLITS, rng, [deterministic, p_values, _published_dknn, _strict])
        names = ("deterministic", "smoothed", "DkNN as published", "ties left out")
        found[kind] = {name: [float((q <= a).mean()) for a in ALPHAS] for name, q in zip(names, p, strict=True)}
    return {"n": 999, "splits": SPLITS, "alphas": ALPHAS, "rates": found}


def _published_dknn(scores: Floats, calibration: Floats, u: Floats) -> Floats:
    """The reference code of Papernot & McDaniel 2018: the smallest calibration scores trimmed, no +1."""
    kept = calibration[calibration > calibration[0]]
    return (len(kept) - np.searchsorted(kept, scores, side="left")) / len(kept)


def _strict(scores: Floats, calibration: Floats, u: Floats) -> Floats:
    """alibi-detect 0.13: (1 + #{calibration > score}) / n."""
    n = len(calibration)
    return (1.0 + n - np.searchsorted(calibration, scores, side="right")) / n


def certificates() -> dict[str, Any]:
    """Rates of single calibration sets, marginal and certified, and how bounds shrink with n."""
    inliers, n, alpha, confidence = real_scores().inliers, 1000, 0.05, 0.95
    k, certified = rank(alpha, n), certified_rank(alpha, n, confidence)
    rates = {
        name: realised_rates(inliers, n, used, DRAWS, np.random.default_rng(1)).tolist()
        for name, used in {"marginal": k, "certified": certified}.items()
    }
    bound = false_alarm_bound(k, n, confidence)
    sizes = [100, 300, 1000, 3000, 10_000, 30_000]
    return {
        "n": n,
        "alpha": alpha,
        "confidence": confidence,
        "bound": bound,
        "draws": DRAWS,
        "rates": rates,
        "marginal_above_bound": float((np.array(rates["marginal"]) > bound).mean()),
        "marginal_above_alpha": float((np.array(rates["marginal"]) > alpha).mean()),
        "certified_above_alpha": float((np.array(rates["certified"]) > alpha).mean()),
        "sizes": sizes,
        "by_size": [
            {
                "n": size,
                "bound_at_0.05": certify(0.05, size).false_alarm_bound,
                "bound_at_0.01": certify(0.01, size).false_alarm_bound,
                "rank_certified_at_0.01": certified_rank(0.01, size, confidence),
                "smallest_certified": certify(0.05, size).smallest_certified,
            }
            for size in sizes
        ],
    }


def classes() -> dict[str, Any]:
    """Share of false alarms by predicted class, against all calibration rows and against those of the class."""
    pool, alpha, n, splits = real_scores(), 0.05, 6000, 200
    rng, flagged, rows = np.random.default_rng(2), np.zeros((2, 10)), np.zeros(10)
    for _ in range(splits):
        order = rng.permutation(len(pool.inliers))
        scores, labels = pool.inliers[order], pool.predicted_classes[order]
        by_score = np.argsort(scores[:n])
        calibration, calibration_labels = scores[:n][by_score], labels[:n][by_score]
        marginal = p_values(scores[n:], calibration) <= alpha
        by_class = ScoresByClass.of(calibration, calibration_labels, 10)
        own = class_conditional_p_values(scores[n:], labels[n:], by_class) <= alpha
        rows += np.bincount(labels[n:], minlength=10)
        flagged += [np.bincount(labels[n:], weights=f, minlength=10) for f in (marginal, own)]
    rates = flagged / rows
    return {"n": n, "alpha": alpha, "marginal": rates[0].tolist(), "class_conditional": rates[1].tolist()}


def batches() -> dict[str, Any]:
    """False discoveries and outliers found when rows of a batch are selected, by share of outliers."""
    pool, shares = real_scores(), [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5]
    found: dict[str, Any] = {"rate": 0.1, "rows": 200, "n": 1000, "batches": BATCHES, "shares": shares, "sets": {}}
    for name, outliers in pool.outliers.items():
        results = [
            select_in_batches(
                pool.inliers,
                outliers,
                n=found["n"],
                rows=found["rows"],
                share=share,
                rate=found["rate"],
                batches=BATCHES,
                rng=np.random.default_rng(3),
            )
            for share in shares
        ]
        found["sets"][name] = {
            "false_discovery_rate": [float(r.false_discovery.mean()) for r in results],
            "found": [float(r.found.mean()) for r in results],
        }
    return found


def drift_alarms() -> dict[str, Any]:
    """When null streams alarm at level .05: the drift watch, and its bets on p-values of a fixed calibration set."""
    found: dict[str, Any] = {"level": 0.05, "streams": STREAMS, "steps": STEPS, "n": {}}
    for n in (200, 1000):
        ours, fixed = [], np.empty((STREAMS, STEPS))
        for stream in range(STREAMS):
            rng = np.random.default_rng([stream, n])
            calibration, scores = np.sort(rng.random(n)), rng.random(STEPS)
            ours.append(watch(calibration, scores, rng, level=0.05).alarm_row)
            fixed[stream] = p_values(scores, calibration, 1.0 - rng.random(STEPS))
        found["n"][n] = {"watch": ours, "fixed": _alarm_rows(fixed, 0.05)}
    return found


def _alarm_rows(p_ST: Floats, level: float) -> list[int]:
    """Per stream the row at which the bets on given p-values alarm; 0: never."""
    streams, steps = p_ST.shape
    t = np.arange(1, steps + 1)
    wealth, rows = np.zeros(bets(p_ST[:, 0]).shape), np.zeros(streams, np.int64)
    for i, stake, rest in zip(range(steps), staked(t), kept(t), strict=True):
        wealth = (wealth + stake) * bets(p_ST[:, i])
        alarmed = (rows == 0) & (wealth.mean(axis=0) + rest >= 1 / level)
        rows[alarmed] = i + 1
        wealth[:, rows > 0] = 0.0  # decided; they would go on to overflow
    return rows.tolist()


def drift_delays() -> dict[str, Any]:
    """Rows until the alarm when a share of notMNIST enters Fashion-MNIST traffic, at once or after clean rows."""
    pool, n, shares = real_scores(), 6000, [0.01, 0.02, 0.05, 0.1, 0.3]
    found: dict[str, Any] = {"n": n, "level": 0.01, "streams": 100, "shares": shares, "delays": {}}
    for clean in (0, 5000):
        rows = []
        for share in shares:
            delays = []
            for stream in range(100):
                rng = np.random.default_rng([stream, clean])
                order = rng.permutation(len(pool.inliers))
                before = pool.inliers[order[n : n + clean]]
                after = mixed_stream(pool.inliers[order[n + clean :]], pool.outliers["notMNIST"], share, rng)
                report = watch(pool.inliers[order[:n]], np.concatenate([before, after]), rng)
                delays.append(report.alarm_row - clean if report.alarm_row > clean else np.inf)
            rows.append([_whole(np.quantile(delays, q, method="higher")) for q in (0.1, 0.5, 0.9)])
        found["delays"][clean] = rows
    return found


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None


def cusum() -> dict[str, Any]:
    """Rows between false alarms of the CUSUM, and its delay, by threshold: it has no guarantee, so it is measured."""
    pool, n, thresholds = real_scores(), 6000, [5.0, 8.0, 10.0, 12.0]
    rng = np.random.default_rng(5)
    between, delays = {h: [] for h in thresholds}, {h: [] for h in thresholds}
    for _ in range(20):  # other calibration rows are another run length
        calibration = np.sort(rng.random(n))
        path = _cusum_path(p_values(rng.random(RUN_LENGTH), calibration))
        for h in thresholds:
            between[h].append(RUN_LENGTH / max(1, _restarts(path, h)))
    for _ in range(100):
        order = rng.permutation(len(pool.inliers))
        after = mixed_stream(pool.inliers[order[n:]], pool.outliers["notMNIST"], 0.05, rng)
        path = np.maximum.accumulate(np.cumsum(log_low_bet(p_values(after, np.sort(pool.inliers[order[:n]])))))
        for h in thresholds:
            delays[h].append(int((path >= h).argmax()) + 1)
    return {
        "n": n,
        "thresholds": thresholds,
        "rows_between_false_alarms": [float(np.median(between[h])) for h in thresholds],
        "median_delay": [float(np.median(delays[h])) for h in thresholds],
    }


def _cusum_path(p: Floats) -> Floats:
    total = np.cumsum(log_low_bet(p))
    return total - np.minimum.accumulate(np.minimum(total, 0.0))


def _restarts(path: Floats, threshold: float) -> int:
    """Number of separate excursions over the threshold."""
    above = path >= threshold
    return int((above[1:] & ~above[:-1]).sum() + above[0])


def limits() -> dict[str, Any]:
    """What no p-value promises: misses, and streams whose rows depend on one another."""
    pool, n = real_scores(), 6000
    calibration = np.sort(pool.inliers[:n])
    alphas = [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
    caught = {
        name: [float((p_values(x, calibration) <= a).mean()) for a in alphas] for name, x in pool.outliers.items()
    }
    repeats, share = [1, 2, 5, 20], []
    for times in repeats:
        alarmed = 0
        for stream in range(STREAMS):
            rng = np.random.default_rng([stream, times])
            order = rng.permutation(len(pool.inliers))
            rows = np.repeat(pool.inliers[order[1000:]], times)[:5000]
            alarmed += watch(pool.inliers[order[:1000]], rows, rng, level=0.05).alarm
        share.append(alarmed / STREAMS)
    return {"n": n, "alphas": alphas, "caught": caught, "repeats": repeats, "alarmed": share, "streams": STREAMS}


if __name__ == "__main__":
    main()
