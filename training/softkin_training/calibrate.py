"""A bank with its scorer, and the calibration that this scorer gives: what a bundle's promise rests on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from softkin.bank import Bank
from softkin.bundle import Calibration, bank_tensors
from softkin.errors import DataError
from softkin.nonconformity import Form, Nonconformity, Outputs, Part, outlier_score
from softkin.scorer import Scorer
from softkin_training.rows import Rows

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


def calibrate(
    model: Path,
    bank: Bank,
    *,
    form: Form,
    parts: tuple[Part, ...],
    layer_weights: Floats,
    reference: Rows | None,
    rows: Rows,
) -> Calibrated:
    """Calibrate a bank by the scorer that serves it.

    Args:
        model: the network; the bank is written beside it while the scorer lives.
        bank: the bank.
        form: nonconformity form.
        parts: of the joint form.
        layer_weights: `[L]`.
        reference: rows that put the parts of the joint form on one scale; None for the other forms.
        rows: calibration rows, disjoint from all others.

    Raises:
        DataError: the network overflows on a row.
    """
    file = Path(tempfile.mkdtemp(dir=model.parent)) / "bank.safetensors"
    save_file(bank_tensors(bank), file)
    scorer = Scorer(model, bank, file)
    plain = Nonconformity(form="density", class_weights=bank.class_weights, layer_weights=layer_weights)
    references: dict[str, Floats] = {}
    if reference is not None:
        outputs = _finite_outputs(scorer, reference)
        references = {part: np.sort(plain.part_score(part, outputs)) for part in parts}
    nonconformity = Nonconformity(
        form=form,
        class_weights=plain.class_weights,
        layer_weights=layer_weights,
        parts=parts,
        references=references,
    )
    outputs = _finite_outputs(scorer, rows)
    a_BC = nonconformity(outputs)
    scores = outlier_score(a_BC, nonconformity.predict(outputs, a_BC))
    true = np.take_along_axis(a_BC, rows.y[:, None], axis=1)[:, 0]
    order = np.argsort(true, kind="stable")
    calibration = Calibration(
        outlier_scores=np.sort(scores),
        true_class_scores=true[order],
        true_classes=rows.y[order].astype(np.int32),
        references=references,
    )
    return Calibrated(bank=bank, calibration=calibration, scores=scores, _scorer=scorer, _nonconformity=nonconformity)


def _finite_outputs(scorer: Scorer, rows: Rows) -> Outputs:
    outputs = scorer.run(rows.x)
    if not outputs.finite.all():
        example = int(rows.ids[outputs.finite.argmin()])
        raise DataError(f"calibration: the network overflows on example {example}; check its scale: inliers do not")
    return outputs
