"""A new version of a bundle from new calibration rows: same network, same bank, same scores, new p-values.

Needs neither torch nor the training data: the bundle remembers which rows it was made of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softkin import bundle as bundles
from softkin import conformal
from softkin.arguments import as_rows
from softkin.bundle import Bundle
from softkin.calibration import Calibration
from softkin.certificate import certify
from softkin.detector import Detector, nonconformity_of
from softkin.errors import InvalidInputError
from softkin.manifest import CLASS_P_VALUES, NAME, NAME_LENGTH, NAME_RULE, Manifest
from softkin_training.calibrate import calibration_of, refuse_overflow
from softkin_training.class_rows import ClassRows, class_rows, merge_sorted, with_classes
from softkin_training.row_contents import digests64, fingerprint, refuse_repeated, refuse_used, row_digests
from softkin_training.rows import Rows, check_labels


def recalibrate(
    bundle: str | os.PathLike[str],
    out: str | os.PathLike[str],
    rows: Rows | NDArray[np.generic],
    *,
    grow: bool = False,
    version: str | None = None,
    alpha: float | None = None,
    name: str = "calibration",
) -> Manifest:
    """Write a new version of a bundle whose p-values rest on `rows`.

    The false-alarm rate holds for inputs exchangeable with the calibration rows: `rows` must be a plain sample of the
    inliers to come. Rows chosen by the detector's own verdict, whichever, are none. With `grow` the same goes for the
    old and the new rows together, so only while inliers have not drifted.

    Outlier scores do not change: network, bank and golden rows are carried over, and so are the references of the
    joint form. So is the manifest's `approximation`, which was measured on the first calibration rows.

    Labels are behind class p-values, credibility and confidence alone. Without them these go on resting on the labelled
    rows of the bundle: with `grow` they hold as before, otherwise for the inliers of before only (`class_rows`).

    Args:
        bundle: bundle directory to start from; it is left as it is.
        out: bundle directory to write.
        rows: inliers that neither network, bank nor references have seen: raw inputs `[n, *manifest.input_shape]` of
            dtype `manifest.input_dtype`, with labels in [0, C); an array alone where labels are not known.
        grow: add `rows` to the calibration rows of the bundle, instead of replacing those.
        version: of the new bundle; by default the old one with `-r1`, or with one more than its own `-rK`, and then
            eight hexadecimal digits of what it is made of, as in `1-r1-5f0c2b9e`: bundle, rows, labels, `grow` and
            `alpha`. The same again has the same version, anything else another.
        alpha: new default false-alarm rate; the bundle's when None.
        name: of `rows`, for messages.

    Returns:
        The manifest as written; its provenance says what it was made from.

    Raises:
        InvalidInputError: wrong dtype or shape, values that are not finite, the bundle's own version or one that is no
            name, or an alpha that so many rows cannot honour.
        DataError: labels out of range, rows that repeat or were used before, or a row on which the network overflows.
        BundleError: the bundle is damaged, `out` exists or cannot be written; nothing half-written stays.
    """
    old = bundles.read_bundle(bundle)
    labelled = isinstance(rows, Rows) or len(old.manifest.classes) == 1
    if not isinstance(rows, Rows):
        rows = Rows.of(np.atleast_1d(as_rows(rows, "rows")))
    check_labels(rows, len(old.manifest.classes), name)
    n = len(rows) + (len(old.calibration) if grow else 0)
    alpha = conformal.check_alpha(old.manifest.default_alpha if alpha is None else alpha, n)
    version = _new_version(old.manifest, version, _made_of(old, rows, labelled=labelled, grow=grow, alpha=alpha))

    calibration, accuracy = _score(old, rows, name)
    seen = {
        "flagged_before": float(
            (conformal.p_values(calibration.outlier_scores, old.calibration.outlier_scores) <= alpha).mean()
        ),
        "accuracy": accuracy if labelled and len(old.manifest.classes) > 1 else None,
    }
    # Only now: rows of another dtype, which scoring refuses, have other digests.
    refuse_used(rows, old.used_rows.seen, f"the training, bank or reference rows of {old.path}", name)
    if grow:
        refuse_used(rows, old.used_rows.calibration, f"the calibration rows of {old.path}", name)
    refuse_repeated(rows, name)
    used = digests64(rows)
    classes = class_rows(old, len(rows), labelled=labelled, grow=grow)
    calibration = with_classes(calibration, classes, old.calibration)
    if grow:
        calibration = _merge(old.calibration, calibration)
        used = np.union1d(old.used_rows.calibration, used)
    manifest = dataclasses.replace(
        old.manifest,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        default_alpha=alpha,
        calibration_size=n,
        predicted_class_rows=calibration.rows_by_predicted_class(len(old.manifest.classes)),
        certificate=certify(alpha, n),
        provenance=_provenance(old, rows, classes, seen, grow=grow),
    )
    return bundles.write_bundle(
        out,
        manifest,
        model=(old.path / bundles.MODEL).read_bytes(),
        bank=old.bank,
        calibration=calibration,
        golden=old.golden,
        used_rows=dataclasses.replace(old.used_rows, calibration=used),
    )


def _made_of(old: Bundle, rows: Rows, *, labelled: bool, grow: bool, alpha: float) -> str:
    """Eight hexadecimal digits that differ for different results.

    Two bundles of one name and version would be taken for each other, by a server and in its metrics.
    """
    found = sorted(zip(row_digests(rows), rows.y.tolist() if labelled else [-1] * len(rows), strict=True))
    return hashlib.sha256(json.dumps([old.digest, found, grow, alpha]).encode()).hexdigest()[:8]


def _new_version(manifest: Manifest, version: str | None, made_of: str) -> str:
    found = re.fullmatch(r"(.+)-r(\d{1,9})(-[0-9a-f]{8})?", manifest.version)
    stem, number = (found[1], int(found[2]) + 1) if found else (manifest.version, 1)
    suffix = f"-r{number}-{made_of}"
    default = stem[: NAME_LENGTH - len(suffix)] + suffix
    if version == manifest.version:
        raise InvalidInputError(
            "version",
            f"got {version!r}, which is the bundle's own; two different detectors must not share a version: choose "
            f"another, or leave it out for {default!r}",
        )
    chosen = default if version is None else version
    if not (isinstance(chosen, str) and NAME.fullmatch(chosen)):  # before rows are scored
        raise InvalidInputError("version", f"got {chosen!r}; must be {NAME_RULE}")
    return chosen


def _score(old: Bundle, rows: Rows, name: str) -> tuple[Calibration, float]:
    """The calibration that `rows` make, by the scorer that serves, and the classifier's accuracy; calls them `name`."""
    outputs = Detector(old).outputs(rows.x)
    refuse_overflow(outputs, rows, name)
    nonconformity = nonconformity_of(old.manifest, old.bank, old.calibration.references)
    right = nonconformity.predict(outputs, nonconformity(outputs)) == rows.y
    return calibration_of(nonconformity, outputs, rows.y, old.bank.layers)[0], float(right.mean())


def _merge(old: Calibration, new: Calibration) -> Calibration:
    """A calibration with the label-free scores of both; scores at true classes are those of `new`."""
    scores, predicted = merge_sorted(
        old.outlier_scores, new.outlier_scores, old.predicted_classes, new.predicted_classes
    )
    return Calibration(
        outlier_scores=scores,
        predicted_classes=predicted,
        true_class_scores=new.true_class_scores,
        true_classes=new.true_classes,
        references=old.references,
        layer_terms={name: np.sort(np.concatenate([a, new.layer_terms[name]])) for name, a in old.layer_terms.items()},
    )


def _provenance(
    old: Bundle, rows: Rows, classes: ClassRows, seen: dict[str, float | None], *, grow: bool
) -> dict[str, Any]:
    """The old bundle's provenance, and how the new one was made of it; `from_digest` identifies the old one.

    `seen` is what the old one makes of the rows: a wrong scale or shifted labels show there, and nowhere else.
    """
    found = fingerprint(rows)
    provenance = {k: v for k, v in old.manifest.provenance.items() if k != CLASS_P_VALUES}
    replaced = {} if grow else {"calibration": found}
    return {
        **provenance,
        **classes.provenance,
        "fingerprints": {**provenance.get("fingerprints", {}), **replaced},
        "recalibrated": {
            "from_digest": old.digest,
            "from_version": old.manifest.version,
            "grown": grow,
            "rows": len(rows),
            "fingerprint": found,
            **seen,
        },
    }
