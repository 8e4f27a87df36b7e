"""What the tables of an ablation do not hold: entanglement while training, and what probabilities are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel

from softkin_training.ablate import folder_of
from softkin_training.ablation_plan import FAR, Cell
from softkin_training.ablation_table import OWN, values_by_seed
from softkin_training.history import HISTORY

OURS = ("softkin", "density", "posterior", "joint")
"""How the titles of softkin's own scores begin."""
CALIBRATION = {"ECE": "ece", "Brier score": "brier", "NLL": "nll"}


def claims(cells: Sequence[Cell], folder: Path) -> dict[str, Any]:
    """By claim and network, values over seeds, of the networks that know all classes.

    Args:
        cells: of one recipe.
        folder: where `ablate` put its networks, whose histories are read.

    Returns:
        `entanglement`: network -> layer -> `[seeds, 1 + epochs]` ratios to chance, the first of the untrained network.
        `calibration`: measure -> network -> mean, deviation, and the paired difference to the first network.
        `accuracy`: network -> on all test rows: mean, deviation, paired difference.
        `sets`: network -> score -> outlier set -> mean AUROC.
        `best`: network -> measure -> the best of the scores of others, and softkin's paired difference to it.
    """
    far = [c for c in cells if c.family == FAR]
    detects = list(dict.fromkeys(c.detect for c in far))
    networks = list(dict.fromkeys(c.train for c in far))
    found: dict[str, Any] = {"entanglement": {}, "calibration": {}}
    for network in networks:
        seeds = sorted({c.seed for c in far if c.train == network})
        runs = [_ratios(_history(folder, network, seed)) for seed in seeds]
        found["entanglement"][network] = {layer: [run[layer] for run in runs] for layer in runs[0]}
    measures: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
        name: (detects[0], lambda r, k=key: float(r["classifier"][k])) for name, key in CALIBRATION.items()
    }
    for d in (detects[0], detects[-1]):
        measures[f"accuracy, lowest tenth of credibility: {d}"] = (d, lambda r: _tenth(r, 0))
        measures[f"accuracy, highest tenth of credibility: {d}"] = (d, lambda r: _tenth(r, -1))
        measures[f"correlation of credibility and correctness: {d}"] = (d, _correlation)
    for name, (detect, measure) in measures.items():
        by_network = {
            n: {c.seed: measure(c.report) for c in far if c.train == n and c.detect == detect} for n in networks
        }
        found["calibration"][name] = {n: _summary(v, by_network[networks[0]]) for n, v in by_network.items()}
    accuracies = {n: {c.seed: _accuracy(_history(folder, n, c.seed)) for c in far if c.train == n} for n in networks}
    found["accuracy"] = {n: _summary(v, accuracies[networks[0]]) for n, v in accuracies.items()}
    found["sets"] = {n: _by_set([c for c in far if c.train == n], detects[0]) for n in networks}
    found["best"] = _against_the_best(cells, networks, detects)
    return found


def _by_set(cells: Sequence[Cell], first: str) -> dict[str, dict[str, float]]:
    aurocs: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        for name, score in cell.report["scores"].items():
            if name == OWN or cell.detect == first:
                label = f"softkin: {cell.detect}" if name == OWN else score["title"]
                for outliers, values in score["outliers"].items():
                    aurocs.setdefault(label, {}).setdefault(outliers, []).append(values["auroc"])
    return {label: {k: float(np.mean(v)) for k, v in sets.items()} for label, sets in aurocs.items()}


def _against_the_best(cells: Sequence[Cell], networks: Sequence[str], detects: Sequence[str]) -> dict[str, Any]:
    """Every softkin detector against the score of others that is best on average, chosen with hindsight."""
    values = values_by_seed(cells)
    found: dict[str, Any] = {}
    for network in networks:
        others = {s: v for (n, s), v in values.items() if n == network and not s.startswith(OURS)}
        for measure in ("far_auroc", "far_caught", "near_auroc", "near_caught"):
            means = {s: float(np.mean(list(v[measure].values()))) for s, v in others.items() if measure in v}
            if not means:
                continue
            best = max(means, key=lambda s: means[s])
            base = others[best][measure]
            ours = {d: values[network, f"softkin: {d}"][measure] for d in detects}
            found.setdefault(network, {})[measure] = {
                "best": best,
                "mean": means[best],
                "softkin": {d: _summary(v, base) for d, v in ours.items()},
            }
    return found


def _history(folder: Path, network: str, seed: int) -> list[dict[str, Any]]:
    file = folder / folder_of(FAR) / folder_of(network) / f"seed{seed}" / HISTORY
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _accuracy(epochs: list[dict[str, Any]]) -> float:
    return float(epochs[-1]["test_accuracy"])


def _ratios(epochs: list[dict[str, Any]]) -> dict[str, list[float]]:
    probes = [epochs[0]["probe_untrained"], *(e["probe"] for e in epochs)]
    return {layer: [p[layer]["ratio"] for p in probes] for layer in probes[0]}


def _tenth(report: dict[str, Any], at: int) -> float:
    accuracy = report["credibility"][at]["accuracy"]
    return math.nan if accuracy is None else float(accuracy)  # of no rows


def _correlation(report: dict[str, Any]) -> float:
    """Of the tenth of credibility that a row lies in with whether it is classified right."""
    bins = [b for b in report["credibility"] if b["rows"]]
    n, a, x = (np.array([b[k] for b in bins], float) for k in ("rows", "accuracy", "mean"))
    n /= n.sum()
    x, a = x - (n * x).sum(), a
    p = float((n * a).sum())
    return float((n * x * a).sum() / np.sqrt((n * x * x).sum() * p * (1 - p)))


def _summary(values: dict[int, float], base: dict[int, float]) -> dict[str, Any]:
    seeds = sorted(values)
    a, b = np.array([values[s] for s in seeds]), np.array([base[s] for s in seeds])
    varies = len(a) > 2 and float(np.ptp(a - b)) > 1e-12
    return {
        "mean": float(a.mean()),
        "sd": float(a.std(ddof=1)) if len(a) > 1 else 0.0,
        "paired": {"difference": float((a - b).mean()), "p": float(ttest_rel(a, b).pvalue) if varies else None},
    }
