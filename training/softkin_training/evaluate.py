"""Detection report of a bundle, beside what other scores give on the same network, bank and rows."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin import bundle as bundles
from softkin import conformal, mass
from softkin.bank import PADDING_LABEL, Bank
from softkin.detector import Detector
from softkin.nonconformity import Nonconformity, Outputs, Part
from softkin.scorer import Network
from softkin.scorer_graph import representation_output
from softkin_training import baselines
from softkin_training.detection_metrics import Rate, auroc, fpr95, fpr95_id, rate
from softkin_training.rows import Rows

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One score against one outlier set."""

    auroc: float
    fpr95: float
    fpr95_id: float
    caught: Rate | None
    """Share of outliers with p-value <= alpha; None where the score was not calibrated."""


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """One score against every outlier set."""

    title: str
    false_alarms: Rate | None
    """Share of inliers with p-value <= alpha; None where the score was not calibrated."""
    outliers: dict[str, Detection]

    @property
    def mean_auroc(self) -> float:
        """Mean over outlier sets."""
        return float(np.mean([d.auroc for d in self.outliers.values()]))

    @property
    def mean_caught(self) -> float | None:
        """Mean over outlier sets; None where the score was not calibrated."""
        caught = [d.caught.value for d in self.outliers.values() if d.caught]
        return float(np.mean(caught)) if caught else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `evaluate` found."""

    detector: str
    version: str
    digest: str
    alpha: float
    calibration_size: int
    inlier_rows: int
    accuracy: float | None
    scores: dict[str, ScoreReport]
    """By short name; the bundle's own score is `softkin`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, means included."""
        raw = dataclasses.asdict(self)
        for name, report in self.scores.items():
            raw["scores"][name] |= {"mean_auroc": report.mean_auroc, "mean_caught": report.mean_caught}
        return raw


def evaluate(
    bundle: str | os.PathLike[str],
    *,
    inliers: NDArray[np.generic],
    labels: NDArray[np.int64] | None,
    outliers: Mapping[str, NDArray[np.generic]],
    calibration: Rows | None = None,
    alpha: float | None = None,
) -> Report:
    """Measure a bundle.

    Args:
        bundle: bundle directory.
        inliers: raw inputs that the detector should accept, seen neither in training, bank nor calibration.
        labels: their classes, for accuracy; None when unknown.
        outliers: raw inputs that it should flag, by name.
        calibration: the calibration rows, so that every other score gets p-values too. All of them are used, also
            those that the joint form sets aside.
        alpha: false-alarm rate of the verdicts; the bundle's default when None.

    Returns:
        The report; the bundle's own score comes first.
    """
    loaded = bundles.read_bundle(bundle)
    detector = Detector(loaded)
    m = detector.manifest
    alpha = conformal.check_alpha(m.default_alpha if alpha is None else alpha, m.calibration_size)
    sets = {"inliers": inliers, **{f"outliers/{k}": v for k, v in outliers.items()}}
    own = {k: detector.score(x, alpha=alpha) for k, x in sets.items()}
    if calibration is not None:
        sets["calibration"] = calibration.x
    passes = {k: _Pass(detector, Network(loaded.path / bundles.MODEL), x) for k, x in sets.items()}
    reports = {
        "softkin": _report(
            f"softkin ({_form(detector)})",
            {k: s.outlier_score for k, s in own.items()},
            {k: s.p_value for k, s in own.items()},
            alpha,
        )
    }
    for name, (title, score) in _others(loaded.bank, detector, calibration, passes.get("calibration")).items():
        values = {k: score(p) for k, p in passes.items()}
        cal = values.pop("calibration", None)
        p = None if cal is None else {k: conformal.p_values(v, np.sort(cal)) for k, v in values.items()}
        if name == "dknn" and cal is not None:
            # Its score is one minus a p-value already: published DkNN flags where credibility <= alpha.
            p = {k: 1.0 - v for k, v in values.items()}
        reports[name] = _report(title, values, p, alpha)
    accuracy = None if labels is None else float((own["inliers"].predicted_class == labels).mean())
    return Report(
        detector=m.name,
        version=m.version,
        digest=detector.digest,
        alpha=alpha,
        calibration_size=m.calibration_size,
        inlier_rows=len(inliers),
        accuracy=accuracy,
        scores=reports,
    )


def write_report(report: Report, out: Path) -> None:
    """Write report.json and report.md into `out`, creating it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(report), encoding="utf-8")


def markdown(report: Report) -> str:
    """The report as a Markdown table."""
    names = list(next(iter(report.scores.values())).outliers)
    head = ["score", *[f"AUROC {n}" for n in names], "mean AUROC", "false alarms", *[f"caught {n}" for n in names]]
    lines = [
        f"# {report.detector} {report.version}",
        "",
        f"{report.inlier_rows} inliers, {report.calibration_size} calibration rows, alpha = {report.alpha:g}"
        + (f", accuracy {report.accuracy:.4f}" if report.accuracy is not None else "")
        + ". Every score is computed on the same network, bank and rows; caught = share of outliers with p <= alpha.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for r in report.scores.values():
        cells = [r.title, *[f"{r.outliers[n].auroc:.4f}" for n in names], f"{r.mean_auroc:.4f}"]
        cells.append(f"{r.false_alarms.value:.4f}" if r.false_alarms else "")
        cells += [f"{c.value:.4f}" if (c := r.outliers[n].caught) else "" for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _form(detector: Detector) -> str:
    m = detector.manifest
    return m.nonconformity + (f": {' + '.join(m.parts)}" if m.parts else "")


class _Pass:
    """One set of rows through the network and the scorer, each once."""

    def __init__(self, detector: Detector, network: Network, x: NDArray[np.generic]) -> None:
        self.outputs: Outputs = detector.outputs(x)
        found = network.run(x)
        self.z = {layer.name: found[representation_output(layer.name)] for layer in detector.manifest.layers}


Score = Callable[[_Pass], Floats]


def _others(
    bank: Bank, detector: Detector, calibration: Rows | None, calibration_pass: _Pass | None
) -> dict[str, tuple[str, Score]]:
    """Every other score of this bundle's network and bank: title and function."""
    last = detector.manifest.layers[-1].name
    plain = Nonconformity(
        form="density",
        class_weights=bank.class_weights,
        layer_weights=np.array([layer.weight for layer in detector.manifest.layers]),
    )

    def part(name: Part) -> Score:
        return lambda p: plain.part_score(name, p.outputs)

    scores: dict[str, tuple[str, Score]] = {
        "posterior": ("posterior", part("posterior")),
        "density": ("density", part("density")),
        "density_last": (f"density, {last}", part("density_last")),
    }
    if not detector.manifest.condensed_from:  # prototypes are too few to be counted as neighbours
        scores |= _neighbor_scores(bank, last, calibration, calibration_pass)
    scores.pop(detector.manifest.nonconformity, None)  # the bundle's own row already
    if detector.has_logits:
        scores["energy"] = ("energy", lambda p: mass.energy(_logits(p)))
        scores["max_softmax"] = ("max softmax", lambda p: baselines.max_softmax(_logits(p)))
    return scores


def _neighbor_scores(
    bank: Bank, last: str, calibration: Rows | None, calibration_pass: _Pass | None
) -> dict[str, tuple[str, Score]]:
    """The scores that look at k neighbours among the bank's rows."""
    real = bank.labels != PADDING_LABEL
    labels = bank.labels[real].astype(np.int64)
    rows = {n: layer.representations(real) for n, layer in bank.layers.items()}

    def count(p: _Pass) -> Floats:
        return baselines.dknn_nonconformity(p.z, rows, labels, bank.num_classes)

    def dknn(p: _Pass) -> Floats:
        if true is not None:
            return baselines.dknn_credibility(count(p), true)
        # Credibility is a monotone function of the smallest count: the same ranking without a calibration set.
        return np.asarray(count(p).min(axis=1))

    true = None
    if calibration is not None and calibration_pass is not None:
        true = np.take_along_axis(count(calibration_pass), calibration.y[:, None], axis=1)[:, 0]
    return {
        "kth_neighbor": (f"k-th neighbour distance, {last}", lambda p: baselines.kth_neighbor(p.z[last], rows[last])),
        "dknn": ("DkNN credibility", dknn),
    }


def _logits(p: _Pass) -> NDArray[np.float32]:
    assert p.outputs.logits is not None
    return p.outputs.logits


def _report(title: str, values: Mapping[str, Floats], p: Mapping[str, Floats] | None, alpha: float) -> ScoreReport:
    prefix = "outliers/"
    return ScoreReport(
        title=title,
        false_alarms=rate(p["inliers"] <= alpha) if p else None,
        outliers={
            k.removeprefix(prefix): Detection(
                auroc=auroc(values["inliers"], v),
                fpr95=fpr95(values["inliers"], v),
                fpr95_id=fpr95_id(values["inliers"], v),
                caught=rate(p[k] <= alpha) if p else None,
            )
            for k, v in values.items()
            if k.startswith(prefix)
        },
    )
