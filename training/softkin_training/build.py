"""Bank and calibration through softkin's own scorer -> bundle. Needs no torch: any ONNX classifier will do."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from softkin import bundle as bundles
from softkin import conformal
from softkin.bank import Bank, Precision, pack
from softkin.bundle_arrays import Golden, UsedRows
from softkin.certificate import certify
from softkin.errors import DataError
from softkin.manifest import NAMED_ROWS, Approximation, Layer, Manifest
from softkin.mass import Metric
from softkin.nonconformity import Form, Part
from softkin.row_names import RowNames
from softkin.scorer import Network, reducer_key
from softkin_training.approximate import choose
from softkin_training.bank_temperature import neighbor_distance, refuse_alike
from softkin_training.boundary import with_boundary
from softkin_training.calibrate import Calibrated, calibrate, stored
from softkin_training.representations import extract
from softkin_training.row_contents import (
    BANK_IN_ORDER,
    digests64,
    distinct,
    fingerprint,
    fingerprint_in_order,
    refuse_overlap,
    refuse_used,
)
from softkin_training.rows import Naming, Rows, check_labels, parts_of
from softkin_training.scratch import written_to
from softkin_training.split import FEWEST_REFERENCES, reference_size, rows_for_alpha
from softkin_training.whitening import Whitening, with_whitening

GOLDEN_ROWS = 16
TEMPERATURE_ROWS = 2000
"""Bank rows that the temperature is chosen on."""

T = TypeVar("T")


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
    whiten: bool = False
    """Compare representations in units of the spread within classes (`whitening.py`)."""
    temperature_scale: float = 0.25
    """Temperature of each layer, in units of the median distance between nearest bank rows."""
    condense: float = 1.0
    """How many training rows a bank row stands for: above 1 the bank holds weighted prototypes (`condense.py`)."""
    precision: Precision | Literal["auto"] = "float32"
    """What the bank's rows are stored in; `auto`: the fewest bits that keep within `max_p_value_change`."""
    max_p_value_change: float = 1.0
    """Error budget: largest change of a p-value on the calibration rows against all rows in float32."""
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)


def build(
    out: Path,
    model: bytes,
    spec: DetectorSpec,
    *,
    bank_rows: Rows,
    calibration_rows: Rows,
    train_x: Rows | NDArray[np.generic] | None = None,
    outliers: Mapping[str, NDArray[np.generic]] | None = None,
    naming: Naming | None = None,
    replace: bool = False,
) -> Manifest:
    """Build a bundle from an exported model.

    Args:
        out: bundle directory to write.
        model: ONNX with outputs `representation.<layer>` and, for a classifier, `logits`.
        spec: what to build.
        bank_rows: training rows for the bank, raw inputs with labels and ids.
        calibration_rows: rows that neither the network nor the bank has seen.
        train_x: rows, or raw inputs, that the network was trained on, where they are known.
        outliers: raw inputs by name; where the bank is condensed or rounded, the manifest says how AUROC changed.
        naming: what rows of the bank are called, for evidence; None where they have no names.
        replace: put the bundle in the place of an existing one.

    Returns:
        The manifest as written.

    Raises:
        DataError: calibration overlaps with bank or training rows, there are too few rows for alpha, the error budget
            is exceeded, the model has no boundaries of which a part is made, or the temporary folder is full.
        BundleError: the directory cannot be written.
    """
    refuse_overlap(bank_rows, calibration_rows, "bank", "calibration")
    if train_x is not None:
        refuse_used(calibration_rows, digests64(train_x), "the training rows")
    for what, rows in {"bank": bank_rows, "calibration": calibration_rows}.items():
        check_labels(rows, len(spec.classes), what)
    reference, calibration = _split(calibration_rows, spec)
    _require_rows(len(calibration), spec.alpha, reference is not None)
    if "boundary_distance" in spec.parts:
        model = with_boundary(model, bank_rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundles.MODEL
        with written_to(path.parent, "network"):
            path.write_bytes(model)
        z = extract(Network(path), bank_rows, [layer.name for layer in spec.layers], len(spec.classes), Path(folder))
        _refuse_not_finite(z, bank_rows.ids)
        if spec.whiten:
            model, spec = _whitened(model, spec, z, bank_rows.y)
            with written_to(path.parent, "network"):
                path.write_bytes(model)
        network = Network(path)

        def calibrated(bank: Bank, bank_file: Path) -> Calibrated:
            return calibrate(
                path,
                bank,
                bank_file,
                form=spec.nonconformity,
                parts=spec.parts,
                layer_weights=np.array([layer.weight for layer in spec.layers]),
                reference=reference,
                rows=calibration,
            )

        exact = calibrated(*stored(_bank(z, bank_rows.y, bank_rows.ids, spec), path.parent))
        bank = _condensed_bank(z, bank_rows, spec) if spec.condense > 1 else exact.bank
        chosen, approximation = choose(
            exact,
            bank,
            precision=spec.precision,
            budget=spec.max_p_value_change,
            calibrated=lambda rounded: calibrated(*stored(rounded, path.parent)),
            alpha=spec.alpha,
            outliers=outliers or {},
        )
        among = np.unique(np.linspace(0, len(bank_rows) - 1, GOLDEN_ROWS).astype(np.int64))
        golden_inputs = bank_rows.read(among)
        golden = Golden(inputs=golden_inputs, outlier_scores=chosen.outlier_scores(golden_inputs))
    examples = chosen.bank.examples
    names = None if naming is None else RowNames.of(examples, naming(examples))
    manifest = _manifest(spec, chosen, network, bank_rows, calibration, approximation, names)
    seen = [rows for rows in (train_x, bank_rows, reference) if rows is not None]
    return bundles.write_bundle(
        out,
        manifest,
        model=model,
        bank=dataclasses.replace(chosen.bank, names=names),
        calibration=chosen.calibration,
        golden=golden,
        used_rows=UsedRows(
            seen=distinct(np.concatenate([digests64(x) for x in seen])),
            calibration=digests64(calibration),
            references=np.zeros(0, np.uint64) if reference is None else digests64(reference),
        ),
        replace=replace,
    )


def _by_id(rows: Rows, ids: NDArray[np.int64]) -> Rows:
    """Those of `[n]` ids among the rows, in their order."""
    order = np.argsort(rows.ids)
    return rows.take(order[np.searchsorted(rows.ids[order], ids)])


def _refuse_not_finite(z: dict[str, NDArray[np.float32]], ids: NDArray[np.int64]) -> None:
    """Refuse rows of which a layer makes NaN or infinity: they would be as near to every other row as to none."""
    for name, z_ND in z.items():
        finite = np.concatenate([np.isfinite(z_ND[part]).all(axis=1) for part in parts_of(len(z_ND))])
        if bad := int((~finite).sum()):
            raise DataError(
                f"layer {name!r}: {bad} of {len(finite)} rows become NaN or infinity in float32; scale the rows, or "
                f"remove those, of which example {ids[~finite].min()} is the first"
            )


def _split(rows: Rows, spec: DetectorSpec) -> tuple[Rows | None, Rows]:
    if spec.nonconformity != "joint":
        return None, rows
    order = np.random.default_rng(spec.seed).permutation(len(rows))
    cut = reference_size(len(rows))
    if cut < FEWEST_REFERENCES:
        raise DataError(
            f"calibration: {len(rows)} rows are too few for the joint form, which at alpha = {spec.alpha:g} needs at "
            f"least {rows_for_alpha(spec.alpha, 'joint')}: add rows, or take nonconformity = 'density'"
        )
    return rows.take(order[:cut]), rows.take(order[cut:])


def _require_rows(n: int, alpha: float, set_aside: bool) -> None:
    if not 0 < alpha < 1:
        raise DataError(f"alpha is {alpha:g}; it is a false-alarm rate and must lie strictly in (0, 1)")
    if alpha < conformal.smallest_p_value(n):
        remedy = f", or choose alpha >= {conformal.rounded_up(conformal.smallest_p_value(n))}" if n else ""
        remedy += ", or nonconformity = 'density', which sets none aside" if set_aside else ""
        raise DataError(
            f"calibration: {n} rows cannot give a p-value of {alpha:g}; at least {conformal.rows_needed(alpha)} are "
            f"needed{' after the reference rows are set aside' if set_aside else ''}{remedy}"
        )


def _whitened(
    model: bytes, spec: DetectorSpec, z: dict[str, NDArray[np.float32]], labels: NDArray[np.int64]
) -> tuple[bytes, DetectorSpec]:
    """Model and specification with all layers whitened; so are the bank's representations afterwards."""
    _of_each_layer(refuse_alike, z, spec)  # whitened, rounding alone would look like rows that differ
    whitenings = {layer.name: Whitening.fit(z[layer.name], labels, layer.metric) for layer in spec.layers}
    layers = tuple(dataclasses.replace(layer, metric="squared_euclidean") for layer in spec.layers)
    for name, whitening in whitenings.items():
        whitening.overwrite(z[name])
    return with_whitening(model, whitenings), dataclasses.replace(spec, layers=layers)


def _bank(
    z: dict[str, NDArray[np.float32]],
    labels: NDArray[np.int64],
    ids: NDArray[np.int64],
    spec: DetectorSpec,
    weights: NDArray[np.float32] | None = None,
) -> Bank:
    return pack(
        z,
        labels,
        ids,
        num_classes=len(spec.classes),
        temperatures={n: spec.temperature_scale * d for n, d in _of_each_layer(neighbor_distance, z, spec).items()},
        metrics={layer.name: layer.metric for layer in spec.layers},
        weights=weights,
    )


def _of_each_layer(
    measure: Callable[[NDArray[np.float32], NDArray[np.integer], Metric], T],
    z: dict[str, NDArray[np.float32]],
    spec: DetectorSpec,
) -> dict[str, T]:
    """What `measure` finds in each layer's rows and a sample of them."""
    found = {}
    for layer in spec.layers:
        rows = z[layer.name]
        sample = np.random.default_rng(spec.seed).permutation(len(rows))[:TEMPERATURE_ROWS]
        try:
            found[layer.name] = measure(rows, sample, layer.metric)
        except DataError as e:
            raise DataError(f"layer {layer.name!r}: {e}" if len(spec.layers) > 1 else str(e)) from None
    return found


def _condensed_bank(z: dict[str, NDArray[np.float32]], rows: Rows, spec: DetectorSpec) -> Bank:
    """A bank of prototypes; its temperatures come from them by the same rule, for they lie farther apart than rows."""
    from softkin_training.condense import condense  # needs scikit-learn, which no other bank does

    found = {
        layer.name: condense(z[layer.name], rows.y, rows.ids, ratio=spec.condense, metric=layer.metric, seed=spec.seed)
        for layer in spec.layers
    }
    layers = list(found.values())
    return _bank(
        {n: p.rows for n, p in found.items()},
        layers[0].labels,
        np.stack([p.ids for p in layers]),
        spec,
        np.stack([p.weights for p in layers]),
    )


def _manifest(
    spec: DetectorSpec,
    calibrated: Calibrated,
    network: Network,
    bank_rows: Rows,
    calibration: Rows,
    approximation: Approximation | None,
    names: RowNames | None,
) -> Manifest:
    bank = calibrated.bank
    return Manifest(
        name=spec.name,
        version=spec.version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input_name=network.input_name,
        input_dtype=str(bank_rows.dtype),
        input_shape=tuple(map(int, bank_rows.row_shape)),
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
        predicted_class_rows=calibrated.calibration.rows_by_predicted_class(len(spec.classes)),
        certificate=certify(spec.alpha, len(calibration)),
        bank_size=bank.size,
        bank_precision=bank.precision,
        condensed_from=len(bank_rows) if spec.condense > 1 else 0,
        approximation=approximation,
        provenance={
            **spec.provenance,
            "seed": spec.seed,
            **({NAMED_ROWS: len(names)} if names else {}),
            "fingerprints": {
                **spec.provenance.get("fingerprints", {}),
                "bank": fingerprint(bank_rows),
                BANK_IN_ORDER: fingerprint_in_order(_by_id(bank_rows, bank.examples)),
                "calibration": fingerprint(calibration),
            },
        },
    )
