"""The detector as one ONNX model, in a runtime that is not onnxruntime: onnx's own evaluator, operator by operator."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from softkin import Detector
from softkin.export_onnx import export_onnx
from softkin_training.build import build


class LogSoftmax(OpRun):
    """As runtimes compute it: onnx's own takes the log of a softmax, which is 0 where rows are far."""

    def _run(self, x, axis=None):
        below = x - x.max(axis=axis, keepdims=True)
        return ((below - np.log(np.exp(below).sum(axis=axis, keepdims=True))).astype(x.dtype),)


class GatherElements(OpRun):
    """As the standard has it: onnx's own refuses tables of more than 64 numbers, as many as numpy.choose takes."""

    def _run(self, data, indices, axis=None):
        return (np.take_along_axis(data, indices, axis=axis),)


@pytest.mark.parametrize("changes", [{}, {"whiten": True}, {"precision": "float16"}, {"condense": 5.0}], ids=str)
def test_it_gives_the_numbers_of_the_detector(tiny, tmp_path, changes):
    """What is exported are standard operators, whose meaning does not depend on who runs them."""
    spec = dataclasses.replace(tiny.spec, **changes)
    build(tmp_path / "bundle", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    export_onnx(tmp_path / "bundle", tmp_path / "detector.onnx")
    x = np.concatenate([tiny.inliers[:40], tiny.outliers[:10]])

    evaluator = ReferenceEvaluator(onnx.load(tmp_path / "detector.onnx"), new_ops=[LogSoftmax, GatherElements])
    with np.errstate(all="ignore"):  # both sides of a Where are computed
        outputs = evaluator.run(None, {evaluator.input_names[0]: x})
    found = dict(zip(evaluator.output_names, outputs, strict=True))

    expected = Detector.load(tmp_path / "bundle", device="cpu").score(x)
    np.testing.assert_allclose(found["outlier_score"], expected.outlier_score, rtol=1e-4)
    np.testing.assert_array_equal(found["predicted_class"], expected.predicted_class)
    one_rank = 1.0001 / (expected.budget.calibration_size + 1)
    for name in ("p_value", "class_p_values", "credibility", "confidence"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=one_rank)
