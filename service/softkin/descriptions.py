"""A detector and its drift watch as a client sees them: between the wire and the domain, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softkin.certificate import Certificate, certify
from softkin.drift import DriftReport
from softkin.scoring_detector import ScoringDetector
from softkin.v1 import outlier_pb2 as pb
from softkin.verdicts import Guarantee, check_guarantee

GUARANTEE_NUMBERS: dict[Guarantee, pb.Guarantee] = {
    "marginal": pb.GUARANTEE_MARGINAL,
    "certified": pb.GUARANTEE_CERTIFIED,
    "class_conditional": pb.GUARANTEE_CLASS_CONDITIONAL,
    "false_discovery_rate": pb.GUARANTEE_FALSE_DISCOVERY_RATE,
}


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer whose representations are compared with the bank."""

    name: str
    dim: int
    metric: str
    temperature: float


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """A detector as a client sees it."""

    name: str
    version: str
    digest: str
    device: str
    input_dtype: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    layers: tuple[LayerInfo, ...]
    nonconformity: str
    parts: tuple[str, ...]
    """Of the joint form, as in `Scores.parts.names`; empty for the others, which have layers there."""
    default_alpha: float
    default_guarantee: str
    calibration_size: int
    smallest_p_value: float
    predicted_class_rows: tuple[int, ...]
    certificate: Certificate
    bank_size: int
    bank_precision: str
    condensed_from: int
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DriftInfo:
    """The drift watch of a detector as a client sees it."""

    detector: str
    version: str
    digest: str
    report: DriftReport


def guarantee_number(guarantee: str) -> pb.Guarantee:
    """The wire's number of a guarantee.

    Raises:
        InvalidInputError: there is no such guarantee.
    """
    return GUARANTEE_NUMBERS[check_guarantee(guarantee)]


def guarantee_of(number: int) -> Guarantee | None:
    """The guarantee of a number on the wire; None where not set or unknown."""
    return next((name for name, known in GUARANTEE_NUMBERS.items() if known == number), None)


def detector_to_proto(
    detector: ScoringDetector,
    default_alpha: float,
    guarantee: Guarantee,
    confidence: float,
    labels: Sequence[str] = (),
) -> pb.DetectorInfo:
    """Describe a detector.

    Args:
        detector: what is loaded.
        default_alpha: the rate this server uses when a request names none.
        guarantee: likewise.
        confidence: of the certificate.
        labels: that this version carries.
    """
    m = detector.manifest
    return pb.DetectorInfo(
        name=m.name,
        version=m.version,
        digest=detector.digest,
        device=detector.device,
        input_dtype=f"DATA_TYPE_{m.input_dtype.upper()}",
        input_shape=m.input_shape,
        classes=m.classes,
        layers=[pb.LayerInfo(name=x.name, dim=x.dim, metric=x.metric, temperature=x.temperature) for x in m.layers],
        nonconformity=m.nonconformity,
        parts=m.parts,
        default_alpha=default_alpha,
        default_guarantee=guarantee_number(guarantee),
        calibration_size=m.calibration_size,
        smallest_p_value=detector.smallest_p_value,
        predicted_class_rows=m.predicted_class_rows,
        certificate=pb.Certificate(**vars(certify(default_alpha, m.calibration_size, confidence))),
        bank_size=m.bank_size,
        bank_precision=m.bank_precision,
        condensed_from=m.condensed_from,
        labels=labels,
    )


def proto_to_detector_info(info: pb.DetectorInfo) -> DetectorInfo:
    """Decode the description of a detector."""
    return DetectorInfo(
        name=info.name,
        version=info.version,
        digest=info.digest,
        device=info.device,
        input_dtype=_dtype_name(info.input_dtype),
        input_shape=tuple(info.input_shape),
        classes=tuple(info.classes),
        layers=tuple(
            LayerInfo(name=x.name, dim=x.dim, metric=x.metric, temperature=x.temperature) for x in info.layers
        ),
        nonconformity=info.nonconformity,
        parts=tuple(info.parts),
        default_alpha=info.default_alpha,
        default_guarantee=guarantee_of(info.default_guarantee) or "unknown",
        calibration_size=info.calibration_size,
        smallest_p_value=info.smallest_p_value,
        predicted_class_rows=tuple(info.predicted_class_rows),
        certificate=Certificate(
            alpha=info.certificate.alpha,
            confidence=info.certificate.confidence,
            false_alarm_bound=info.certificate.false_alarm_bound,
            smallest_certified=info.certificate.smallest_certified,
        ),
        bank_size=info.bank_size,
        bank_precision=info.bank_precision,
        condensed_from=info.condensed_from,
        labels=tuple(info.labels),
    )


def _dtype_name(number: int) -> str:
    # A newer server may know types that are not in this client's contract.
    if number not in pb.DataType.values():
        return "unknown"
    return pb.DataType.Name(pb.DataType.ValueType(number)).removeprefix("DATA_TYPE_").lower()


def drift_to_proto(report: DriftReport, detector: ScoringDetector) -> pb.GetDriftResponse:
    """Encode what the watch of a detector has seen."""
    return pb.GetDriftResponse(
        detector=detector.manifest.name,
        version=detector.manifest.version,
        digest=detector.digest,
        rows=report.rows,
        log10_martingale=report.log10_martingale,
        max_log10_martingale=report.max_log10_martingale,
        alarm=report.alarm,
        alarm_level=report.level,
        alarm_row=report.alarm_row,
        cusum_no_guarantee=report.cusum,
        flag_rate=report.flag_rate,
        alpha=report.alpha,
        window_rows=report.window_rows,
        p_value_histogram=report.histogram.tolist(),
    )


def proto_to_drift(drift: pb.GetDriftResponse) -> DriftInfo:
    """Decode what the watch of a detector has seen."""
    return DriftInfo(
        detector=drift.detector,
        version=drift.version,
        digest=drift.digest,
        report=DriftReport(
            rows=drift.rows,
            level=drift.alarm_level,
            log10_martingale=drift.log10_martingale,
            max_log10_martingale=drift.max_log10_martingale,
            alarm_row=drift.alarm_row,
            cusum=drift.cusum_no_guarantee,
            window_rows=drift.window_rows,
            flag_rate=drift.flag_rate,
            alpha=drift.alpha,
            histogram=np.array(drift.p_value_histogram, np.int64),
        ),
    )
