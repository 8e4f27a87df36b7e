"""A bundle without any training: from an ONNX classifier made elsewhere, or from bare vectors. Needs no torch.

The promise of a bundle rests on calibration rows that its network was not trained on. Of a network made elsewhere only
its maker knows which those are: give them as a file of their own, or split off a share of rows that all are such.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from softkin import bundle as bundles
from softkin.chunks import rows_together
from softkin.errors import DataError, InvalidInputError
from softkin.manifest import INPUT_COLUMNS, INPUT_DTYPES, Manifest
from softkin.scorer import Network
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.columns import columns_of
from softkin_training.expose import EMBEDDING, Exposed, embedding_network, expose
from softkin_training.fit_accuracy import FitAccuracy, accuracy_on
from softkin_training.fit_config import DEFAULT_PARTS, FitConfig
from softkin_training.fit_rows import ONE_CLASS, refuse_empty_classes, uneven_deviations
from softkin_training.fit_source import ALL_COLUMNS, FitSource, TableColumns, read_calibration, read_fit_source
from softkin_training.foreign import read_model
from softkin_training.input_columns import SERVED_AS
from softkin_training.network_head import find_head
from softkin_training.npz import checked_labels
from softkin_training.onnx_graphs import real_inputs
from softkin_training.row_contents import fingerprint, originals
from softkin_training.rows import Rows
from softkin_training.split import choose_bank_rows, first_of_each, split
from softkin_training.table_rows import is_table
from softkin_training.trial import BATCH

BUNDLE = "bundle"
PROBE_ROWS = 64
NO_CLASSES = (
    "; a single number a row stands for the second of two classes: name by --output what has a column for each class, "
    "or, of a model that predicts numbers, give the vectors of a hidden layer without labels to fit --embeddings"
)
LIBRARIES = ("softkin", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What was built, and what was found on the way."""

    manifest: Manifest
    exposed: Exposed
    repeated_rows: int
    """Rows of x_train left out because their content came before."""
    repeated_share: float
    """Their share of x_train."""
    contradicting_rows: int
    """Those among them whose label is not that of the row that stays."""
    accuracy: FitAccuracy | None
    """Of the classifier; None for bare vectors."""
    deviations: tuple[float, float] | None
    """See `uneven_deviations`; None where rows themselves are not compared."""


def fit_onnx(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    config: FitConfig,
    *,
    calibration: str | Path | None = None,
    calibration_share: float = 0.2,
    output: str | None = None,
    output_kind: str = "auto",
    columns: TableColumns = ALL_COLUMNS,
) -> Fitted:
    """Turn an ONNX classifier into the bundle OUT/bundle; one from an earlier run stays until the new one is complete.

    Args:
        model: ONNX file; `config.layers` names tensors or nodes of it.
        data: npz with `x_train` as the model takes it and `y_train`, the index of the model's output column; and
            `class_names`, if they are known; of a table `column_names`, so that new rows are found by them; and
            `names_train`, a text for each row, so that evidence names rows. Or a table, .csv or .parquet, whose labels
            stand for the model's output columns in their order.
        out: directory, made if missing.
        config: what to build.
        calibration: npz with `x_test`, `y_test` that calibrate, or a table: rows the model was not trained on.
        calibration_share: without `calibration`, this part of `x_train` calibrates and does not enter the bank; the
            model must not have been trained on these rows either, or false alarms exceed alpha.
        output: see `expose`.
        output_kind: see `expose`.
        columns: of tables.

    Raises:
        InvalidInputError: an option, or the model, is unfit; see `expose`.
        DataError: rows or labels are unfit.
        BundleError: the bundle cannot be written.
    """
    proto = read_model(model)
    source = read_fit_source(data, columns, labels_required=True, dtype=_input_dtype(proto))
    x, names = source.x, source.class_names
    rows = Rows.of(x)
    compared = any(i.name in config.layers for i in real_inputs(proto.graph))
    if config.standardize and not compared:
        raise InvalidInputError(
            "standardize",
            f"got True, but none of the layers {config.layers} is the model's input; it is for columns of the rows "
            "themselves: leave it out, or name the input",
        )
    share = calibration_share
    scales = columns_of(_seen(rows, config, calibration, share), config.standardize) if compared else None
    try:
        exposed = expose(
            proto,
            _probe(x),
            layers=config.layers,
            metric=config.metric,
            max_dim=config.max_dim,
            max_side=config.max_side,
            columns=scales,
            seed=config.seed,
            num_classes=len(names) if names else None,
            output=output,
            output_kind=output_kind,
        )
    except InvalidInputError as e:
        if e.field != "output" or not is_table(Path(data)):
            raise
        labels = f"the classes are the {len(names)} labels of {data}; where the model knows others too, give an .npz"
        raise InvalidInputError(e.field, f"{e.message}; {labels} with class_names") from None
    config = _with_parts(config, exposed)
    _refuse_parts(config, exposed)
    _refuse_labels(source.arrays["y_train"], exposed, data)
    names = names or _numbered(exposed.num_classes)
    y = checked_labels(source.arrays, "train", len(names), data)
    made_of = {
        "onnx": Path(model).name,
        "sha256": _sha256(Path(model)),
        "layers": {layer.name: layer.tensor for layer in exposed.layers},
        "output": exposed.output,
        "output_kind": exposed.output_kind,
        "changes": list(exposed.changes),
    }
    return _fit(exposed, rows.labelled(y), names, source, out, config, made_of, calibration, share)


def fit_embeddings(
    data: str | Path,
    out: str | Path,
    config: FitConfig,
    *,
    calibration: str | Path | None = None,
    calibration_share: float = 0.2,
    columns: TableColumns = ALL_COLUMNS,
) -> Fitted:
    """Turn vectors into the bundle OUT/bundle, which takes vectors: there is no network to run.

    Args:
        data: npz with `x_train` `[N, D]`, `y_train` where there are labels, and `class_names` if they are known;
            without `y_train` all vectors are of one class; `column_names` and `names_train` as for `fit_onnx`. Or a
            table, .csv or .parquet.
        out: as for `fit_onnx`.
        config: what to build; its only layer is `EMBEDDING`.
        calibration: npz with `x_test`, and `y_test` where there are labels, or a table: vectors of rows that whatever
            made the vectors was not trained on.
        calibration_share: as for `fit_onnx`.
        columns: of tables.

    Raises:
        InvalidInputError: an option is unfit.
        DataError: rows or labels are unfit.
        BundleError: the bundle cannot be written.
    """
    source = read_fit_source(data, columns, labels_required=False, dtype=None)
    arrays, x, names = source.arrays, source.x, source.class_names
    if x.ndim != 2:
        raise DataError(f"{data}: x_train has shape {list(x.shape)}; vectors must be [rows, numbers]: reshape them")
    rows = Rows.of(x)
    if "y_train" in arrays:
        names = names or _numbered(_count_classes(arrays["y_train"]))
        rows = rows.labelled(checked_labels(arrays, "train", len(names), data))
    elif names:
        raise DataError(f"{data}: has class_names but no y_train; add the labels, or leave class_names out")
    else:
        names = (ONE_CLASS,)
    scales = columns_of(_seen(rows, config, calibration, calibration_share), config.standardize)
    if scales is not None and "metric" not in config.model_fields_set:  # a table, whose directions say little
        config = config.model_copy(update={"metric": "squared_euclidean"})
    metric = config.metric_of(EMBEDDING)
    exposed = embedding_network(_probe(x), metric=metric, max_dim=config.max_dim, seed=config.seed, columns=scales)
    config = _with_parts(config, exposed)
    _refuse_parts(config, exposed, num_classes=len(names))
    made_of = {"embeddings": Path(data).name}
    return _fit(exposed, rows, names, source, out, config, made_of, calibration, calibration_share)


def _fit(
    exposed: Exposed,
    rows: Rows,
    classes: tuple[str, ...],
    source: FitSource,
    out: str | Path,
    config: FitConfig,
    made_of: dict[str, Any],
    calibration: str | Path | None,
    calibration_share: float,
) -> Fitted:
    data, distinct = source.path, first_of_each(rows)
    if calibration is None:
        seen, calibration_rows = split(distinct, calibration_share, config.seed)
        held_out: dict[str, Any] = {"share": calibration_share}
    else:
        seen, calibration_rows = distinct, read_calibration(calibration, rows, classes, source)
        held_out = {"file": Path(calibration).name}
    bank_rows = choose_bank_rows(seen, config.bank_rows, config.seed)
    remedies = ["add rows", *(["lower the calibration share"] if calibration is None else [])]
    if exposed.output:
        remedies.append(f"give by --output what has a column for each class, if {exposed.output!r} has not")
    else:
        remedies.append("number the classes without gaps")
    refuse_empty_classes(bank_rows, classes, data, remedies)
    spec = DetectorSpec(
        name=config.name,
        version=config.version,
        classes=classes,
        layers=tuple(LayerSpec(name=layer.name, metric=config.metric_of(layer.name)) for layer in exposed.layers),
        nonconformity=config.nonconformity,
        parts=tuple(config.joint_parts),
        alpha=config.alpha,
        whiten=config.whiten,
        temperature_scale=config.temperature_scale,
        condense=config.condense,
        precision=config.precision,
        max_p_value_change=config.max_p_value_change,
        seed=config.seed,
        provenance={
            "fit": {**made_of, **source.said, "config": config.model_dump(mode="json"), "calibration": held_out},
            "libraries": _versions(),
            "fingerprints": {"train": fingerprint(seen)},
            **({INPUT_COLUMNS: list(source.input_columns)} if source.input_columns else {}),
        },
    )
    path = Path(out) / BUNDLE
    manifest = build(
        path,
        exposed.model,
        spec,
        bank_rows=bank_rows,
        calibration_rows=calibration_rows,
        train_x=seen,
        naming=source.naming,
        replace=True,
    )
    accuracy = None
    if exposed.num_classes:
        accuracy = accuracy_on(Network(path / bundles.MODEL), bank_rows, calibration_rows)
    return Fitted(
        manifest=manifest,
        exposed=exposed,
        repeated_rows=len(rows) - len(distinct),
        repeated_share=1 - len(distinct) / len(rows),
        contradicting_rows=0 if distinct is rows else int((rows.y != rows.y[originals(rows)]).sum()),
        accuracy=accuracy,
        deviations=uneven_deviations(rows.x) if any(layer.is_input for layer in exposed.layers) else None,
    )


def _seen(rows: Rows, config: FitConfig, calibration: str | Path | None, share: float) -> NDArray[np.generic]:
    """The rows less those that `_fit` calibrates with: scores that rest on these are no sample of scores to come."""
    if calibration is not None:
        return rows.x
    return split(first_of_each(rows), share, config.seed)[0].x


def _input_dtype(proto: onnx.ModelProto) -> str | None:
    """What the numbers of a table become for a model; None where that is refused later, or they may be of any kind."""
    inputs = real_inputs(proto.graph)
    number = inputs[0].type.tensor_type.elem_type if len(inputs) == 1 else 0
    if number not in helper.get_all_tensor_dtypes():
        return None
    name = helper.tensor_dtype_to_np_dtype(number).name
    served = SERVED_AS.get(name, name)
    return served if served in INPUT_DTYPES else None


def _probe(x: NDArray[Any]) -> NDArray[Any]:
    """Rows from all over `x`, as few as a trial needs where they are so large that more would fill the memory."""
    rows = max(BATCH, rows_together(x[0].size, PROBE_ROWS))
    return x[:: max(1, len(x) // rows)][:rows]


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in range(num_classes))


def _count_classes(y: NDArray[Any]) -> int:
    """How many classes labels need; at most as many as there are rows, for one that is absurd is refused later."""
    return min(int(y.max(initial=0)) + 1, max(1, len(y))) if np.issubdtype(y.dtype, np.integer) and y.ndim else 1


def _refuse_labels(y: NDArray[Any], exposed: Exposed, data: str | Path) -> None:
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        return  # refused with the other labels
    outside = np.flatnonzero((y < 0) | (y >= exposed.num_classes))
    if len(outside):
        raise DataError(
            f"{data}: y_train[{outside[0]}] is {y[outside[0]]}, but output {exposed.output!r} of the model tells "
            f"{exposed.num_classes} classes apart; labels must be the index of one, 0 to {exposed.num_classes - 1} "
            f"({len(outside)} labels are not)" + (NO_CLASSES if exposed.single else "")
        )


def _with_parts(config: FitConfig, exposed: Exposed) -> FitConfig:
    if config.nonconformity != "joint" or config.joint_parts:
        return config
    parts = [part for part in DEFAULT_PARTS if part != "energy" or exposed.has_energy]
    return config.model_copy(update={"joint_parts": parts})


def _refuse_parts(config: FitConfig, exposed: Exposed, num_classes: int = 2) -> None:
    parts = config.joint_parts if config.nonconformity == "joint" else [config.nonconformity]
    where = "parts" if config.nonconformity == "joint" else "nonconformity"
    if "energy" in parts and not exposed.has_energy:
        reason = f"the energy of {exposed.output!r} is the same for every row, as it is for probabilities"
        raise InvalidInputError(
            where,
            f"got 'energy', but {reason if exposed.output else 'vectors have no logits'}; leave it out"
            + (", or name the tensor before the softmax by --output" if exposed.output else ""),
        )
    if "boundary_distance" in parts and find_head(onnx.load_from_string(exposed.model)) is None:
        what = f"{exposed.output!r} is not what a linear layer yields" if exposed.output else "vectors have none"
        before = ", or name the tensor before the softmax by --output" if exposed.output_kind == "probabilities" else ""
        raise InvalidInputError(
            where,
            f"got 'boundary_distance', made of the linear layer before the logits, but {what}; leave it out{before}",
        )
    if num_classes < 2 and (comparing := {"posterior", "posterior_hidden"} & set(parts)):
        what = min(comparing)
        raise InvalidInputError(where, f"got {what!r}, which compares classes, but there is only one; choose density")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:  # onnxruntime goes by either name
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
