"""Detection report of a bundle, beside what other scores give on the same network, bank and rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softkin import bundle as bundles
from softkin import conformal
from softkin.bundle import Bundle
from softkin.certificate import certify
from softkin.display import describe_class_p_values
from softkin.errors import InvalidInputError, listed
from softkin.manifest import Manifest
from softkin.nonconformity import Outputs
from softkin_training.calibration_metrics import (
    CREDIBILITY_BINS,
    ClassifierCalibration,
    accuracy_by_bin,
    classifier_calibration,
)
from softkin_training.class_alarms import uneven_classes
from softkin_training.compared_scores import Compared, compared_scores
from softkin_training.corruption_report import corruption_report
from softkin_training.flag_chance import UNLIKE
from softkin_training.measure import INLIERS, ROC_RATES, histogram, key, p_value_report, score_report
from softkin_training.report import Report, ScoreReport
from softkin_training.report_files import write_texts
from softkin_training.report_html import html
from softkin_training.report_markdown import markdown
from softkin_training.row_contents import among, digests64, refuse_used
from softkin_training.rows import Rows, check_labels
from softkin_training.subject import Pass, Subject

__all__ = ["Report", "evaluate", "markdown", "write_report"]

Floats = NDArray[np.float64]
OWN = "softkin"


def evaluate(
    bundle: str | os.PathLike[str],
    *,
    inliers: NDArray[np.generic],
    labels: NDArray[np.int64] | None,
    outliers: Mapping[str, NDArray[np.generic]],
    calibration: Rows | NDArray[np.generic] | None = None,
    alpha: float | None = None,
    near: Sequence[str] = (),
    corruption_rows: int = 1000,
    compare: bool = True,
    seed: int = 0,
) -> Report:
    """Measure a bundle.

    Args:
        bundle: bundle directory.
        inliers: raw inputs that the detector should accept, seen neither in training, bank nor calibration.
        labels: their classes, for accuracy and calibration of the classifier; None when unknown.
        outliers: raw inputs that it should flag, by name; at least one set.
        calibration: the calibration rows, or their inputs alone, so that every other score gets p-values too. All of
            them are used, also those that the joint form sets aside.
        alpha: false-alarm rate of the verdicts; the bundle's default when None.
        near: names of the outlier sets that are close to the known classes, for means of their own.
        corruption_rows: inliers to corrupt, where they are images; 0 for none.
        compare: whether other scores stand beside the bundle's own.
        seed: of corruptions, and of the split of the calibration rows that joint scores need.

    Returns:
        The report; the bundle's own score comes first.

    Raises:
        InvalidInputError: rows that the detector does not take, an alpha it cannot honour, no outlier set, or `near`
            names none of them.
        DataError: labels are no classes, or calibration rows were used before.
        BundleError: the bundle is damaged.
    """
    loaded = bundles.read_bundle(bundle)
    subject = Subject(loaded)
    m = subject.detector.manifest
    alpha = conformal.check_alpha(m.default_alpha if alpha is None else alpha, m.calibration_size)
    _check_names(outliers, near)
    if labels is not None:
        check_labels(Rows(inliers, labels, np.arange(len(labels))), len(m.classes), "inliers")
    if isinstance(calibration, Rows):
        check_labels(calibration, len(m.classes), "calibration")
    calibration_rows = calibration if calibration is None or isinstance(calibration, Rows) else _unlabelled(calibration)
    for what, x in {INLIERS: inliers, **{f"outliers {name!r}": x for name, x in outliers.items()}}.items():
        subject.check(x, what)
    if calibration_rows is not None:
        subject.check(calibration_rows.x, "calibration")
        _check_calibration(loaded, calibration_rows, inliers)
    passes = {INLIERS: subject.run(inliers), **{key(name): subject.run(x) for name, x in outliers.items()}}
    calibrating = None if calibration_rows is None else subject.run(calibration_rows.x)
    true_classes = calibration.y if isinstance(calibration, Rows) else None
    others, notes = compared_scores(subject, calibrating, true_classes, seed) if compare else ({}, [])

    own = {k: subject.own(p.outputs) for k, p in passes.items()}
    own_scores, own_p = {k: o.outlier_score for k, o in own.items()}, {k: o.p_value for k, o in own.items()}
    form = m.nonconformity + (f": {' + '.join(m.parts).replace('_', ' ')}" if m.parts else "")
    ours = loaded.calibration.outlier_scores
    reports = {OWN: score_report(f"softkin ({form})", "this bundle, as it is served", own_scores, own_p, ours, alpha)}
    for name, other in others.items():
        reports[name] = _compare(other, passes, calibrating, alpha)
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        detector=m.name,
        version=m.version,
        digest=loaded.digest,
        alpha=alpha,
        certificate=certify(alpha, m.calibration_size),
        calibration_size=m.calibration_size,
        inlier_rows=len(inliers),
        accuracy=None if labels is None else float((own[INLIERS].predicted_class == labels).mean()),
        has_logits=subject.detector.has_logits,
        near=tuple(near),
        scores=reports,
        roc_rates=ROC_RATES,
        p_values=p_value_report(own_p, m.calibration_size, alpha),
        histogram=histogram(own_scores),
        classifier=_classifier(passes[INLIERS].outputs, labels, notes),
        credibility=()
        if labels is None
        else accuracy_by_bin(own[INLIERS].credibility, own[INLIERS].predicted_class == labels, CREDIBILITY_BINS),
        corruptions=corruption_report(subject, inliers, labels, alpha=alpha, rows=corruption_rows, seed=seed),
        notes=(
            *_of_another_source(reports[OWN]),
            *_used_before(loaded, inliers, outliers),
            *_behind_credibility(m),
            *uneven_classes(own_p[INLIERS] <= alpha, own[INLIERS].predicted_class, m.classes, alpha),
            *notes,
        ),
    )


def write_report(report: Report, out: Path, *, remedy: str = "make room, or choose another folder") -> None:
    """Write report.json, report.md and report.html into `out`, creating it; all appear, or what was there stays.

    Args:
        report: what to write.
        out: directory.
        remedy: what to do where it cannot be written.

    Raises:
        InvalidInputError: it cannot be written.
    """
    files = {
        "report.json": json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n",
        "report.md": markdown(report),
        "report.html": html(report),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_texts(out, files)
    except OSError as e:
        raise InvalidInputError(
            "out", f"cannot write to {out} ({e.strerror}); no file of the report was written: {remedy}"
        ) from None


def _check_names(outliers: Mapping[str, NDArray[np.generic]], near: Sequence[str]) -> None:
    if not outliers:
        raise InvalidInputError("outliers", "got none; there must be at least one set to tell inliers from")
    for name in near:
        if name not in outliers:
            raise InvalidInputError("near", f"got {name!r}; the outlier sets are {listed(outliers)}")


def _unlabelled(x: NDArray[np.generic]) -> Rows:
    return Rows(x, np.full(len(x), -1), np.arange(len(x)))


def _check_calibration(loaded: Bundle, rows: Rows, inliers: NDArray[np.generic]) -> None:
    # What the joint form sets aside may calibrate every other score.
    seen = loaded.used_rows.seen
    refuse_used(rows, seen[~among(seen, loaded.used_rows.references)], f"the training or bank rows of {loaded.path}")
    refuse_used(rows, digests64(inliers), "the inliers")


def _used_before(
    loaded: Bundle, inliers: NDArray[np.generic], outliers: Mapping[str, NDArray[np.generic]]
) -> list[str]:
    used, own = np.concatenate([loaded.used_rows.seen, loaded.used_rows.calibration]), digests64(inliers)
    notes = []
    if again := int(among(own, used).sum()):
        notes.append(
            f"{again} of the inliers have content that the bundle was trained, built or calibrated with: false alarms, "
            "accuracy and all that builds on them look better than they are. Leave those rows out."
        )
    known = np.concatenate([used, own])
    for name, x in outliers.items():
        if again := int(among(digests64(x), known).sum()):
            notes.append(
                f"{again} of the {len(x)} outliers {name!r} have content that is among the inliers, or that the bundle "
                "was trained, built or calibrated with: the detector looks worse against them than it is. Leave those "
                "rows out."
            )
    return notes


def _of_another_source(own: ScoreReport) -> list[str]:
    """Where scores of inliers and calibration rows differ by more than chance, the promise is about other rows."""
    uniformity = own.uniformity
    if uniformity is None or uniformity.p_value is None or uniformity.p_value >= UNLIKE:
        return []
    return [
        "These inliers are not like the calibration rows: the chance that their scores differ so much by luck is "
        f"{uniformity.p_value:.2g}. The promise is of rows like the calibration rows. Are both prepared alike, and "
        "neither picked nor repeated? If so, recalibrate on rows like those to come."
    ]


def _behind_credibility(m: Manifest) -> list[str]:
    text = " ".join(describe_class_p_values(m))
    return [f"{text[0].upper()}{text[1:]}."] if text else []


def _compare(other: Compared, passes: Mapping[str, Pass], calibrating: Pass | None, alpha: float) -> ScoreReport:
    values = {k: _values(other, p) for k, p in passes.items()}
    if calibrating is None or other.p_values == "none":
        return score_report(other.title, other.source, values, None, None, alpha)
    calibration = _values(other, calibrating)
    if other.p_values == "complement":
        # Published DkNN flags where credibility <= alpha.
        return score_report(other.title, other.source, values, {k: 1.0 - v for k, v in values.items()}, None, alpha)
    calibration = np.sort(calibration if other.calibrates is None else calibration[other.calibrates])
    p = {k: conformal.p_values(v, calibration) for k, v in values.items()}
    return score_report(other.title, other.source, values, p, calibration, alpha)


def _values(other: Compared, p: Pass) -> Floats:
    """The score, and +inf where the network overflows, as the detector has it: NaN would compare as nothing at all."""
    with np.errstate(invalid="ignore", over="ignore"):
        found = other.score(p).astype(np.float64)
    found[~p.outputs.finite | np.isnan(found)] = np.inf
    return found


def _classifier(outputs: Outputs, labels: NDArray[np.int64] | None, notes: list[str]) -> ClassifierCalibration | None:
    if labels is None or outputs.logits is None:
        return None
    finite = outputs.finite
    if not finite.all():
        notes.append(f"The network overflows on {int((~finite).sum())} inliers; its calibration leaves them out.")
    return classifier_calibration(outputs.logits[finite], labels[finite]) if finite.any() else None
