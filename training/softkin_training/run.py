"""A recipe from data to report: the steps of `softkin-train run`, each usable alone.

DIR/checkpoint.pt  DIR/history.jsonl    train
DIR/report/entanglement.svg, .png       train
DIR/model.onnx                          export
DIR/bundle/                             build
DIR/report/                             evaluate
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from softkin.errors import InvalidInputError, RecipeError
from softkin.manifest import INPUT_COLUMNS, Manifest
from softkin.unfinished_files import written_whole
from softkin_training.build import DetectorSpec, LayerSpec, build
from softkin_training.checkpoint import deciding
from softkin_training.config import Recipe
from softkin_training.data import HELD_OUT_SETS, Dataset
from softkin_training.evaluate import Report, evaluate, write_report
from softkin_training.export import export
from softkin_training.history import GO_ON
from softkin_training.models import Classifier
from softkin_training.row_contents import fingerprint
from softkin_training.split import choose_bank_rows
from softkin_training.train import REPORT, load_checkpoint, train

PROBE_ROWS = 64
MODEL, BUNDLE = "model.onnx", "bundle"
EXPORTED = "softkin.exported"
"""Key of a model's metadata: the settings and the training rows that it comes from."""
WHERE_IT_RAN = tuple(
    f"training.{k}" for k in ("accelerator", "devices", "cpu_threads", "cuda_graph", "checkpoint_every_epochs")
)
"""Keys that say where and how training ran, not which model it makes; resuming still wants them equal."""
EXPORTED_KEYS = ("metric", "max_dim", "max_side")
"""Keys of [detector] on which an exported model depends, beside the network and the layers."""
LIBRARIES = ("softkin", "torch", "onnx", "onnxruntime-gpu", "numpy")


def run(recipe: Recipe, dataset: Dataset, out: Path, *, resume: bool = False, progress: bool = True) -> Report:
    """Train, export, build and evaluate; see the module for what lies where afterwards.

    Args:
        recipe: the whole run.
        dataset: its data.
        out: directory for everything; made if missing.
        resume: go on from the checkpoint in `out`, if there is one.
        progress: show a progress bar while training.

    Raises:
        SoftkinError: any step's own errors; a bundle from an earlier run stays until the new one is complete.
    """
    model = train(recipe, dataset, out, resume=resume, progress=progress).model
    export_step(recipe, dataset, out, model)
    build_step(recipe, dataset, out)
    return evaluate_step(dataset, out)


def export_step(recipe: Recipe, dataset: Dataset, out: Path, model: Classifier | None = None) -> Path:
    """Write DIR/model.onnx from `model`, or from DIR/checkpoint.pt when None."""
    if model is None:
        model = load_checkpoint(recipe, dataset, out)
    detector = recipe.detector
    serialized = export(
        model,
        dataset.calibration.x[:PROBE_ROWS],
        layers=detector.layers,
        metric=detector.metric,
        max_dim=detector.max_dim,
        max_side=detector.max_side,
        seed=recipe.seed,
        metadata={EXPORTED: json.dumps(_decisive(recipe) | {"train": fingerprint(dataset.train)}, sort_keys=True)},
    )
    path = out / MODEL
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(serialized)
    except OSError as e:
        raise InvalidInputError(
            "out", f"cannot write {path} ({e.strerror}); make room, then run it again: --resume of `run` keeps training"
        ) from None
    return path


def _decisive(recipe: Recipe) -> dict[str, Any]:
    """What an exported model depends on."""
    weights = {k: v for k, v in deciding(recipe.to_dict()).items() if k not in WHERE_IT_RAN}
    return weights | {f"detector.{k}": getattr(recipe.detector, k) for k in EXPORTED_KEYS}


def _refuse_another_export(path: Path, model: bytes, recipe: Recipe, train: str) -> None:
    """Refuse a model that another recipe or other rows left: the bundle would not be what its manifest says.

    Raises:
        RecipeError: names what differs.
    """
    try:
        entries = {p.key: p.value for p in onnx.load_model_from_string(model).metadata_props}
        old = json.loads(entries[EXPORTED])
    except (DecodeError, KeyError):  # no model, which is refused in other words, or one of an older version
        return
    if old.pop("train") != train:
        raise RecipeError(f"{path} was exported from training on other rows; run the train and export steps again")
    new = json.loads(json.dumps(_decisive(recipe)))
    if odd := [f"{k}: {old[k]!r} -> {new[k]!r}" for k in sorted(old.keys() & new.keys()) if old[k] != new[k]]:
        raise RecipeError(f"{path} was exported by another recipe: {', '.join(odd)}; undo that, or export it again")


def build_step(recipe: Recipe, dataset: Dataset, out: Path) -> Manifest:
    """Write DIR/bundle from DIR/model.onnx and the recipe's rows.

    Raises:
        SoftkinError: there is no model, or it is another recipe's or of other rows; and what `build` raises.
    """
    detector, train_fingerprint = recipe.detector, fingerprint(dataset.train)
    spec = DetectorSpec(
        name=recipe.name,
        version=recipe.version,
        classes=dataset.class_names,
        layers=tuple(LayerSpec(name=n, metric=detector.metric_of(n)) for n in detector.layers),
        nonconformity=detector.nonconformity,
        parts=tuple(detector.joint_parts) if detector.nonconformity == "joint" else (),
        alpha=detector.alpha,
        whiten=detector.whiten,
        temperature_scale=detector.temperature_scale,
        condense=detector.condense,
        precision=detector.precision,
        max_p_value_change=detector.max_p_value_change,
        seed=recipe.seed,
        provenance={
            "recipe": recipe.to_dict(),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "fingerprints": {"train": train_fingerprint},
            **({INPUT_COLUMNS: list(dataset.input_columns)} if dataset.input_columns else {}),
        },
    )
    try:
        model = (out / MODEL).read_bytes()
    except OSError as e:
        raise InvalidInputError("out", f"cannot read {out / MODEL} ({e.strerror}); run the export step first") from None
    _refuse_another_export(out / MODEL, model, recipe, train_fingerprint)
    return build(
        out / BUNDLE,
        model,
        spec,
        bank_rows=choose_bank_rows(dataset.train, detector.bank_rows, recipe.seed),
        calibration_rows=dataset.calibration,
        train_x=dataset.train,
        outliers=dataset.outliers,
        naming=dataset.naming,
        replace=True,
    )


def evaluate_step(dataset: Dataset, out: Path) -> Report:
    """Write DIR/report from DIR/bundle, the test rows and the outlier sets."""
    report = evaluate(
        out / BUNDLE,
        inliers=dataset.test.x,
        labels=dataset.test.y,
        outliers=dataset.outliers,
        calibration=dataset.calibration,
        near=[name for name in dataset.outliers if name in HELD_OUT_SETS],
    )
    write_report(report, out / REPORT, remedy=GO_ON)
    return report
