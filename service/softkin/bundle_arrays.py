"""The arrays in the files of a bundle, written and read: every array's name, type and shape stands here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softkin.bank import PADDING_LABEL, Bank, LayerBank, tiles_of
from softkin.calibration import Calibration
from softkin.errors import BundleError
from softkin.manifest import Layer, Manifest
from softkin.mass import Metric
from softkin.nonconformity import CENTER, CLASS_PARTS, SCALE
from softkin.row_names import RowNames
from softkin.tensor_file import TensorFile

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class UsedRows:
    """Which rows the detector was made of, as sorted 64-bit digests (`row_digests`): so that none is used twice."""

    seen: NDArray[np.uint64]
    """Rows that trained the network, stand in the bank, or set the scale of the joint form."""
    calibration: NDArray[np.uint64]
    references: NDArray[np.uint64]
    """Rows among `seen` that did nothing but set the scale of the joint form; none of another form."""


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Probe rows with the scores that the builder saw."""

    inputs: NDArray[np.generic]
    outlier_scores: NDArray[np.float64]


def contiguous(tensors: Mapping[str, NDArray[np.generic]]) -> Tensors:
    """The arrays in C order, as safetensors takes them."""
    return {k: np.ascontiguousarray(v) for k, v in tensors.items()}


def bank_tensors(bank: Bank) -> Tensors:
    """The arrays of bank.safetensors."""
    tensors: Tensors = {"labels": bank.labels, "ids": bank.ids, "weights": bank.weights}
    for name, layer in bank.layers.items():
        tensors[f"rows.{name}"] = layer.rows
        tensors[f"center.{name}"] = layer.center
        for key, array in {"offsets": layer.offsets, "scales": layer.scales}.items():
            if array is not None:
                tensors[f"{key}.{name}"] = array
    if bank.names is not None:
        tensors |= {f"names.{key}": array for key, array in vars(bank.names).items()}
    return contiguous(tensors)


def with_rows_in(bank: Bank, file: Path) -> Bank:
    """The bank with a read-only map of its rows in a file of `bank_tensors` in the place of those in memory.

    Raises:
        BundleError: as for `read_bank`.
    """
    tensors = TensorFile(file)
    layers = {
        n: replace(b, rows=tensors.take(f"rows.{n}", b.rows.dtype.type, b.rows.shape, copy=False))
        for n, b in bank.layers.items()
    }
    return replace(bank, layers=layers)


def read_bank(file: Path, m: Manifest) -> Bank:
    """The bank, as `bank_tensors` wrote it.

    Raises:
        BundleError: names the array that is missing, or does not fit the manifest or the others.
    """
    tensors = TensorFile(file)
    labels = tensors.take("labels", np.int32, (None,))
    n = len(labels)
    real = labels != PADDING_LABEL
    if not tiles_of(labels)[1]:
        raise BundleError(f"{file}: labels are not laid out in tiles of rows of one class")
    if set(np.unique(labels[real]).tolist()) != set(range(len(m.classes))):
        raise BundleError(f"{file}: labels do not cover exactly the {len(m.classes)} classes of the manifest")
    if int(real.sum()) != m.bank_size:
        raise BundleError(f"{file}: holds {int(real.sum())} rows, the manifest says bank_size {m.bank_size}")
    copies = len(m.layers) if m.condensed_from else 1
    weights = tensors.take("weights", np.float32, (copies, n))
    if not (weights[:, real] > 0).all():
        raise BundleError(f"{file}: weights of rows must be positive")
    return Bank(
        layers={layer.name: _read_layer(tensors, layer, m.bank_precision, n) for layer in m.layers},
        labels=labels,
        ids=tensors.take("ids", np.int64, (copies, n)),
        weights=weights,
        num_classes=len(m.classes),
        names=_read_names(tensors) if "names.ids" in tensors else None,
    )


def _read_names(tensors: TensorFile) -> RowNames:
    try:
        return RowNames(
            ids=tensors.take("names.ids", np.int64, (None,)),
            ends=tensors.take("names.ends", np.int64, (None,)),
            letters=tensors.take("names.letters", np.uint8, (None,)),
        )
    except ValueError as e:
        raise BundleError(f"{tensors.file}: names of training rows: {e}; build the bundle again") from None


def _read_layer(tensors: TensorFile, layer: Layer, precision: str, n: int) -> LayerBank:
    def column(name: str) -> NDArray[np.float32]:
        return tensors.take(f"{name}.{layer.name}", np.float32, (n,))

    metric: Metric = "cosine" if layer.metric == "cosine" else "squared_euclidean"
    width = layer.dim + (precision == "float32")
    return LayerBank(
        metric=metric,
        temperature=layer.temperature,
        rows=tensors.take(f"rows.{layer.name}", np.dtype(precision).type, (n, width), copy=False),
        center=tensors.take(f"center.{layer.name}", np.float32, (layer.dim,)),
        offsets=None if precision == "float32" else column("offsets"),
        scales=column("scales") if precision == "int8" else None,
    )


def calibration_tensors(calibration: Calibration) -> Tensors:
    """The arrays of calibration.safetensors."""
    arrays: Tensors = {k: v for k, v in vars(calibration).items() if isinstance(v, np.ndarray)}
    arrays |= {f"references.{k}": v for k, v in calibration.references.items()}
    arrays |= {f"layer_terms.{k}": v for k, v in calibration.layer_terms.items()}
    return contiguous(arrays)


def read_calibration(file: Path, m: Manifest) -> Calibration:
    """The calibration, as `calibration_tensors` wrote it.

    Raises:
        BundleError: as for `read_bank`.
    """
    tensors = TensorFile(file)
    n, num_classes = m.calibration_size, len(m.classes)

    def classes(name: str, n: int) -> NDArray[np.int32]:
        found = tensors.take(name, np.int32, (n,))
        if found.min() < 0 or found.max() >= num_classes:
            raise BundleError(f"{file}: array {name!r} must hold classes in [0, {num_classes})")
        return found

    true_class_scores = _sorted(tensors, "true_class_scores", None)  # not n: some rows may have no label
    calibration = Calibration(
        outlier_scores=_sorted(tensors, "outlier_scores", n),
        predicted_classes=classes("predicted_classes", n),
        true_class_scores=true_class_scores,
        true_classes=classes("true_classes", len(true_class_scores)),
        references=_references(tensors, m),
        layer_terms={} if m.parts else {x.name: _sorted(tensors, f"layer_terms.{x.name}", n) for x in m.layers},
    )
    if calibration.rows_by_predicted_class(num_classes) != m.predicted_class_rows:
        raise BundleError(f"{file}: rows by predicted class are not the manifest's predicted_class_rows")
    return calibration


def _references(tensors: TensorFile, m: Manifest) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for part in m.parts:
        found[part] = _sorted(tensors, f"references.{part}", None)
        if part in CLASS_PARTS:
            center, scale = CENTER.format(part), SCALE.format(part)
            for key in (center, scale):
                found[key] = tensors.take(f"references.{key}", np.float64, (len(m.classes),))
            if not (found[scale] > 0).all():
                raise BundleError(f"{tensors.file}: array 'references.{scale}' must be positive")
    return found


def _sorted(tensors: TensorFile, name: str, n: int | None) -> NDArray[np.float64]:
    a = tensors.take(name, np.float64, (n,))
    if len(a) < 1 or (np.diff(a) < 0).any():
        raise BundleError(f"{tensors.file}: array {name!r} must be sorted ascending and not empty")
    return a


def read_golden(file: Path, m: Manifest) -> Golden:
    """The golden rows, written with a field of `Golden` to an array.

    Raises:
        BundleError: as for `read_bank`.
    """
    tensors = TensorFile(file)
    inputs = tensors.take("inputs", np.dtype(m.input_dtype).type, (None, *m.input_shape))
    return Golden(inputs=inputs, outlier_scores=tensors.take("outlier_scores", np.float64, (len(inputs),)))


def read_used_rows(file: Path) -> UsedRows:
    """The digests of rows, written with a field of `UsedRows` to an array.

    Raises:
        BundleError: as for `read_bank`.
    """
    tensors = TensorFile(file)

    def digests(name: str) -> NDArray[np.uint64]:
        return tensors.take(name, np.uint64, (None,))

    return UsedRows(
        seen=digests("seen"),
        calibration=digests("calibration"),
        references=digests("references") if "references" in tensors else np.zeros(0, np.uint64),  # an older bundle
    )
