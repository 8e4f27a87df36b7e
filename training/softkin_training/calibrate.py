"""A bank with its scorer, and the calibration that this scorer gives: what a bundle's promise rests on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from softkin.bank import Bank
from softkin.bundle_arrays import bank_tensors, with_rows_in
from softkin.calibration import Calibration
from softkin.errors import DataError
from softkin.nonconformity import Form, Nonconformity, Outputs, Part, fit_references, outlier_score
from softkin.scorer import Scorer
from softkin_training.rows import Rows
from softkin_training.scratch import written_to

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A bank that can score, and its calibration."""

    bank: Bank
    calibration: Calibration
    scores: Floats
    """`[n]` outlier scores of the calibration rows, in their order."""
    _scorer: Scorer
    _nonconformity: Nonconformity

    def outlier_scores(self, x: NDArray[np.generic]) -> Floats:
        """`[B]` outlier scores of raw inputs."""
        outputs = self._scorer.run(x)
        a_BC = self._nonconformity(outputs)
        return outlier_score(a_BC, self._nonconformity.predict(outputs, a_BC))


def stored(bank: Bank, folder: Path) -> tuple[Bank, Path]:
    """The bank in a file of its own, and the same bank with its rows in that file: a session holds them already.

    Args:
        bank: whoever keeps it keeps its rows in memory.
        folder: directory for the file, which must outlive the bank.

    Raises:
        DataError: the file cannot be written.
    """
    file = Path(tempfile.mkdtemp(dir=folder)) / "bank.safetensors"
    with written_to(file.parent, "bank"):
        save_file(bank_tensors(bank), file)
    return with_rows_in(bank, file), file


def calibrate(
    model: Path,
    bank: Bank,
    bank_file: Path,
    *,
    form: Form,
    parts: tuple[Part, ...],
    layer_weights: Floats,
    reference: Rows | None,
    rows: Rows,
) -> Calibrated:
    """Calibrate a bank by the scorer that serves it.

    Args:
        model: the network.
        bank: the bank.
        bank_file: where it is `stored`; must stay while the scorer lives.
        form: nonconformity form.
        parts: of the joint form.
        layer_weights: `[L]`.
        reference: rows that put the parts of the joint form on one scale; None for the other forms.
        rows: calibration rows, disjoint from all others.

    Raises:
        DataError: the network overflows on a row.
    """
    scorer = Scorer(model, bank, bank_file)
    plain = Nonconformity(form="density", class_weights=bank.class_weights, layer_weights=layer_weights)
    references: dict[str, Floats] = {}
    if reference is not None:
        outputs = scorer.run(reference.x)
        refuse_overflow(outputs, reference)
        references = fit_references(plain, parts, outputs)
    nonconformity = Nonconformity(
        form=form,
        class_weights=plain.class_weights,
        layer_weights=layer_weights,
        parts=parts,
        references=references,
    )
    outputs = scorer.run(rows.x)
    refuse_overflow(outputs, rows)
    calibration, scores = calibration_of(nonconformity, outputs, rows.y, bank.layers)
    return Calibrated(bank=bank, calibration=calibration, scores=scores, _scorer=scorer, _nonconformity=nonconformity)


def calibration_of(
    nonconformity: Nonconformity, outputs: Outputs, true_B: NDArray[np.int64], layers: Iterable[str]
) -> tuple[Calibration, Floats]:
    """The calibration of rows, and their outlier scores `[n]` in the order of the rows.

    Args:
        nonconformity: the form, with its references.
        outputs: of the calibration rows.
        true_B: `[n]` true classes.
        layers: their names, in the order of the masses.
    """
    a_BC = nonconformity(outputs)
    predicted = nonconformity.predict(outputs, a_BC)
    scores, true_scores = outlier_score(a_BC, predicted), outlier_score(a_BC, true_B.astype(np.int32))
    by_score, by_true_score = np.argsort(scores, kind="stable"), np.argsort(true_scores, kind="stable")
    layer_terms = {}
    if nonconformity.form != "joint":  # whose parts have references of their own
        terms_LB = np.sort(nonconformity.terms(outputs, predicted), axis=0).T
        layer_terms = dict(zip(layers, terms_LB, strict=True))
    calibration = Calibration(
        outlier_scores=scores[by_score],
        predicted_classes=predicted[by_score].astype(np.int32),
        true_class_scores=true_scores[by_true_score],
        true_classes=true_B[by_true_score].astype(np.int32),
        references=dict(nonconformity.references),
        layer_terms=layer_terms,
    )
    return calibration, scores


def refuse_overflow(outputs: Outputs, rows: Rows, name: str = "calibration") -> None:
    """Refuse rows to calibrate with on which the network overflows: they are meant to be inliers.

    Args:
        outputs: of `rows`.
        rows: rows to calibrate with.
        name: of `rows`, for the message.

    Raises:
        DataError: names the first.
    """
    if not outputs.finite.all():
        example = int(rows.ids[outputs.finite.argmin()])
        raise DataError(f"{name}: the network overflows on example {example}; check its scale: inliers do not")
