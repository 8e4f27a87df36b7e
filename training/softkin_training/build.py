"""Bank and calibration through softkin's own scorer -> bundle. Needs no torch: any ONNX classifier will do."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from softkin import bundle as bundles
from softkin import conformal
from softkin.bank import Bank, pack
from softkin.bundle import Calibration, Golden, bank_tensors
from softkin.detector import nonconformity_of
from softkin.errors import DataError
from softkin.manifest import Layer, Manifest
from softkin.mass import Metric
from softkin.nonconformity import Form, Nonconformity, Outputs, Part, outlier_score
from softkin.scorer import LOGITS, Network, Scorer, reducer_key
from softkin.scorer_graph import representation_output
from softkin_training.rows import Rows, fingerprint, refuse_overlap
from softkin_training.temperature import neighbor_distance

REFERENCE_SHARE = 0.25
"""Part of the calibration rows that puts the parts of the joint form on one scale; the rest calibrates the sum."""
GOLDEN_ROWS = 16
TEMPERATURE_ROWS = 2000
"""Bank rows that the temperature is chosen on."""


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer of the model to keep a bank of."""

    name: str
    metric: Metric
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """What to build from a model: everything of the manifest that a person chooses."""

    name: str
    version: str
    classes: tuple[str, ...]
    layers: tuple[LayerSpec, ...]
    nonconformity: Form
    parts: tuple[Part, ...] = ()
    alpha: float = 0.05
    temperature_scale: float = 0.25
    """Temperature of each layer, in units of the median distance between nearest bank rows."""
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


def build(
    out: Path, model: bytes, spec: DetectorSpec, *, bank_rows: Rows, calibration_rows: Rows, replace: bool = False
) -> Manifest:
    """Build a bundle from an exported model.

    Args:
        out: bundle directory to write.
        model: ONNX with outputs `representation.<layer>` and, for a classifier, `logits`.
        spec: what to build.
        bank_rows: training rows for the bank, raw inputs with labels and ids.
        calibration_rows: rows that neither the network nor the bank has seen.
        replace: put the bundle in the place of an existing one.

    Returns:
        The manifest as written.

    Raises:
        DataError: bank and calibration overlap, or there are too few rows for alpha.
        BundleError: the directory cannot be written.
    """
    refuse_overlap(bank_rows, calibration_rows, "bank", "calibration")
    for what, rows in {"bank": bank_rows, "calibration": calibration_rows}.items():
        if len(rows) and not (rows.y.min() >= 0 and rows.y.max() < len(spec.classes)):
            raise DataError(
                f"{what}: labels must lie in [0, {len(spec.classes)}); got [{rows.y.min()}, {rows.y.max()}]"
            )
    reference, calibration = _split(calibration_rows, spec)
    _require_rows(len(calibration), spec.alpha)
    with tempfile.TemporaryDirectory() as folder:
        model_path, bank_path = Path(folder) / bundles.MODEL, Path(folder) / bundles.BANK
        model_path.write_bytes(model)
        network = Network(model_path)
        bank = _make_bank(network, bank_rows, spec)
        save_file(bank_tensors(bank), bank_path)
        scorer = Scorer(model_path, bank, bank_path)
        manifest = _manifest(spec, bank, network, bank_rows, calibration)
        references: dict[str, NDArray[np.float64]] = {}
        if reference is not None:
            references = _references(spec, bank, _finite_outputs(scorer, reference))
        nonconformity = nonconformity_of(manifest, bank, references)
        scores = _calibrate(nonconformity, _finite_outputs(scorer, calibration), calibration.y, references)
        golden = _golden(nonconformity, scorer, bank_rows)
    return bundles.write_bundle(
        out, manifest, model=model, bank=bank, calibration=scores, golden=golden, replace=replace
    )


def _split(rows: Rows, spec: DetectorSpec) -> tuple[Rows | None, Rows]:
    if spec.nonconformity != "joint":
        return None, rows
    order = np.random.default_rng(spec.seed).permutation(len(rows))
    cut = round(len(rows) * REFERENCE_SHARE)
    if cut < 2:
        raise DataError(f"calibration: {len(rows)} rows are too few for the joint form, which needs at least 8")
    return rows.take(order[:cut]), rows.take(order[cut:])


def _require_rows(n: int, alpha: float) -> None:
    if alpha < conformal.smallest_p_value(n):
        raise DataError(
            f"calibration: {n} rows cannot give a p-value of {alpha:g}; at least "
            f"{conformal.rows_needed(alpha)} are needed after the reference rows are set aside, "
            f"or choose alpha >= {conformal.smallest_p_value(n):.6g}"
        )


def _make_bank(network: Network, rows: Rows, spec: DetectorSpec) -> Bank:
    for layer in spec.layers:
        if representation_output(layer.name) not in network.outputs:
            raise DataError(
                f"the model has no output {representation_output(layer.name)!r}; it has {sorted(network.outputs)}"
            )
    outputs = network.run(rows.x)
    metrics = {layer.name: layer.metric for layer in spec.layers}
    z = {n: outputs[representation_output(n)] for n in metrics}
    if LOGITS in outputs and outputs[LOGITS].shape[1] != len(spec.classes):
        raise DataError(
            f"the model has {outputs[LOGITS].shape[1]} logits, but {len(spec.classes)} class names are given"
        )
    sample = np.random.default_rng(spec.seed).permutation(len(rows))[:TEMPERATURE_ROWS]
    temperatures = {
        n: spec.temperature_scale * neighbor_distance(z[n], sample, metric) for n, metric in metrics.items()
    }
    return pack(z, rows.y, rows.ids, num_classes=len(spec.classes), temperatures=temperatures, metrics=metrics)


def _manifest(spec: DetectorSpec, bank: Bank, network: Network, bank_rows: Rows, calibration: Rows) -> Manifest:
    return Manifest(
        name=spec.name,
        version=spec.version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input_name=network.input_name,
        input_dtype=str(bank_rows.x.dtype),
        input_shape=tuple(map(int, bank_rows.x.shape[1:])),
        classes=spec.classes,
        layers=tuple(
            Layer(
                name=layer.name,
                dim=bank.layers[layer.name].dim,
                metric=layer.metric,
                temperature=bank.layers[layer.name].temperature,
                weight=layer.weight,
                reducer=network.metadata.get(reducer_key(layer.name), "none"),
            )
            for layer in spec.layers
        ),
        nonconformity=spec.nonconformity,
        parts=spec.parts,
        default_alpha=spec.alpha,
        calibration_size=len(calibration),
        bank_size=bank.size,
        provenance={
            **spec.provenance,
            "seed": spec.seed,
            "fingerprints": {
                **spec.provenance.get("fingerprints", {}),
                "bank": fingerprint(bank_rows.x),
                "calibration": fingerprint(calibration.x),
            },
        },
    )


def _finite_outputs(scorer: Scorer, rows: Rows) -> Outputs:
    outputs = scorer.run(rows.x)
    if not outputs.finite.all():
        example = int(rows.ids[outputs.finite.argmin()])
        raise DataError(f"calibration: the network overflows on example {example}; check its scale: inliers do not")
    return outputs


def _references(spec: DetectorSpec, bank: Bank, outputs: Outputs) -> dict[str, NDArray[np.float64]]:
    """Sorted label-free scores of each part on the reference rows."""
    weights = np.array([layer.weight for layer in spec.layers])
    plain = Nonconformity(form="density", class_weights=bank.class_weights, layer_weights=weights)
    return {part: np.sort(plain.part_score(part, outputs)) for part in spec.parts}


def _calibrate(
    nonconformity: Nonconformity,
    outputs: Outputs,
    labels: NDArray[np.int64],
    references: dict[str, NDArray[np.float64]],
) -> Calibration:
    a_BC = nonconformity(outputs)
    true = np.take_along_axis(a_BC, labels[:, None], axis=1)[:, 0]
    order = np.argsort(true, kind="stable")
    return Calibration(
        outlier_scores=np.sort(outlier_score(a_BC, nonconformity.predict(outputs, a_BC))),
        true_class_scores=true[order],
        true_classes=labels[order].astype(np.int32),
        references=references,
    )


def _golden(nonconformity: Nonconformity, scorer: Scorer, rows: Rows) -> Golden:
    inputs = rows.x[:: max(1, len(rows) // GOLDEN_ROWS)][:GOLDEN_ROWS]
    outputs = scorer.run(inputs)
    a_BC = nonconformity(outputs)
    scores = outlier_score(a_BC, nonconformity.predict(outputs, a_BC))
    return Golden(inputs=inputs, outlier_scores=scores)
