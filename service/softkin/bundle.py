"""A detector on disk: a directory of plain files, written whole or not at all, verified on every read.

    manifest.json            what it is, and sha256 and size of every other file
    model.onnx               input -> logits and one representation per layer
    bank.safetensors         the tiled bank
    calibration.safetensors  sorted calibration scores
    golden.safetensors       probe inputs with their expected scores
    used_rows.safetensors    digests of the rows it was made of

No pickle and no code, ever; no path is taken from the manifest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from softkin.bank import PADDING_LABEL, Bank, LayerBank, tiles_of
from softkin.calibration import Calibration
from softkin.errors import BundleError, reason_of
from softkin.manifest import FileEntry, Layer, Manifest, parse_manifest
from softkin.mass import Metric
from softkin.nonconformity import CENTER, CLASS_PARTS, SCALE
from softkin.staging import staged
from softkin.tensor_file import TensorFile

MANIFEST, MODEL, BANK = "manifest.json", "model.onnx", "bank.safetensors"
CALIBRATION, GOLDEN, USED_ROWS = "calibration.safetensors", "golden.safetensors", "used_rows.safetensors"
DATA_FILES = (MODEL, BANK, CALIBRATION, GOLDEN, USED_ROWS)
FILES = (MANIFEST, *DATA_FILES)

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


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle."""

    path: Path
    digest: str
    """sha256 of manifest.json, hexadecimal."""
    manifest: Manifest
    bank: Bank
    calibration: Calibration
    golden: Golden
    used_rows: UsedRows
    stamps: tuple[tuple[int, ...], ...]
    """What identifies its files, see `_stamps`; taken before they were verified."""

    def refuse_replaced(self) -> None:
        """Make sure that what was read after the files had been verified came from these very files.

        Raises:
            BundleError: other files have taken their place.
        """
        if _stamps(self.path) != self.stamps:
            raise BundleError(f"{self.path}: was replaced or changed while it was being read; load it again")


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest alone.

    Raises:
        BundleError: not a bundle, or the manifest is damaged.
    """
    return _read_manifest(Path(path))[0]


def digest(path: str | os.PathLike[str]) -> str:
    """The sha256 of a bundle's manifest, which holds the sha256 of everything else."""
    return _read_manifest(Path(path))[1]


def _read_manifest(path: Path) -> tuple[Manifest, str]:
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{file}: not UTF-8 text; the bundle is damaged, copy or build it again") from None
    except (OSError, ValueError) as e:  # a path with a NUL in it is a ValueError
        near = _bundle_near(path)
        one = f"a bundle is a directory with a {MANIFEST}" + (f", such as {near}" if near else "")
        raise BundleError(f"{file}: cannot be read ({reason_of(e)}); {one}") from None
    return parse_manifest(text, str(file)), hashlib.sha256(raw).hexdigest()


def _bundle_near(path: Path) -> Path | None:
    """The bundle that was probably meant: one in this directory, or the directory that this file is in."""
    try:
        inside = sorted(file.parent for file in path.glob(f"*/{MANIFEST}"))
        return next(near for near in [*inside, path.parent] if (near / MANIFEST).is_file())
    except (OSError, ValueError, StopIteration):
        return None


def verify_files(path: str | os.PathLike[str]) -> tuple[Manifest, str]:
    """Check the manifest, and size and sha256 of every file, without reading an array.

    Returns:
        The manifest, and its sha256.

    Raises:
        BundleError: names the file that is missing or altered.
    """
    root = Path(path)
    manifest, manifest_digest = _read_manifest(root)
    for name in DATA_FILES:
        _verify_file(root / name, manifest.files.get(name))
    return manifest, manifest_digest


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle, verifying size and sha256 of every file, and every array's shape, dtype and finiteness.

    Raises:
        BundleError: names the file that is missing, altered or inconsistent; or the bundle was replaced meanwhile.
    """
    root = Path(path)
    stamps = _stamps(root)
    manifest, manifest_digest = verify_files(root)
    found = Bundle(
        path=root,
        digest=manifest_digest,
        manifest=manifest,
        bank=_read_bank(root / BANK, manifest),
        calibration=_read_calibration(root / CALIBRATION, manifest),
        golden=_read_golden(root / GOLDEN, manifest),
        used_rows=_read_used_rows(root / USED_ROWS),
        stamps=stamps,
    )
    found.refuse_replaced()
    return found


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    *,
    model: bytes,
    bank: Bank,
    calibration: Calibration,
    golden: Golden,
    used_rows: UsedRows,
    replace: bool = False,
) -> Manifest:
    """Write a bundle to a temporary sibling, sync it, read it back, then rename it into place.

    Args:
        path: directory to create.
        manifest: `files` is filled in here.
        model: the serialised ONNX model.
        bank: the tiled bank.
        calibration: sorted calibration scores.
        golden: probe rows.
        used_rows: digests of the rows that the detector was made of.
        replace: put the new bundle in the place of an existing one; otherwise an existing path is an error.

    Returns:
        The manifest as written.

    Raises:
        BundleError: the path exists, or is to be replaced and is no bundle; the directory cannot be written, the disk
            is full; nothing half-written stays.
    """
    target = Path(path).absolute()
    if os.path.lexists(target) and not replace:
        raise BundleError(f"{target}: exists already; choose another directory, or remove it first")
    if _holds_something_else(target):
        raise BundleError(f"{target}: exists already and is no bundle; choose another directory, or remove it first")
    with staged(target, what="bundle", make_parent=True, replace=replace) as (staging,):
        staging.mkdir()
        (staging / MODEL).write_bytes(model)
        save_file(bank_tensors(bank), staging / BANK)
        references = {f"references.{k}": v for k, v in calibration.references.items()}
        layer_terms = {f"layer_terms.{k}": v for k, v in calibration.layer_terms.items()}
        arrays = {k: v for k, v in vars(calibration).items() if isinstance(v, np.ndarray)}
        save_file(_contiguous({**arrays, **references, **layer_terms}), staging / CALIBRATION)
        save_file(_contiguous(vars(golden)), staging / GOLDEN)
        save_file(_contiguous(vars(used_rows)), staging / USED_ROWS)
        files = {n: FileEntry(sha256=_sha256(staging / n), size=(staging / n).stat().st_size) for n in DATA_FILES}
        manifest = dataclasses.replace(manifest, files=files)
        (staging / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        read_bundle(staging)
    return manifest


def _holds_something_else(path: Path) -> bool:
    """Whether a path is taken by something that is no bundle, and would be lost; a damaged bundle is one, too."""
    if not os.path.isdir(path):  # which takes any path, unlike Path.is_dir
        return os.path.lexists(path)
    try:
        return not os.path.lexists(path / MANIFEST) and any(path.iterdir())
    except OSError:
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _verify_file(file: Path, entry: FileEntry | None) -> None:
    if entry is None:
        raise BundleError(f"{file}: not listed in the manifest; the bundle is incomplete, copy or build it again")
    try:
        size = file.stat().st_size
        if size != entry.size:
            raise BundleError(f"{file}: has {size} bytes, the manifest says {entry.size}; copy or build it again")
        if _sha256(file) != entry.sha256:
            raise BundleError(f"{file}: its sha256 is not the manifest's: the file was altered; copy or build it again")
    except OSError as e:
        raise BundleError(f"{file}: cannot be read ({e.strerror}); copy or build the bundle again") from None


def _stamps(root: Path) -> tuple[tuple[int, ...], ...]:
    """What identifies each file that is there. Files are opened by path several times, and verified only once."""
    found: list[tuple[int, ...]] = []
    for name in FILES:
        with contextlib.suppress(OSError, ValueError):
            at = (root / name).stat()
            # The times of a pipe change whenever somebody writes to it.
            found.append((at.st_dev, at.st_ino, *((at.st_size, at.st_mtime_ns) if stat.S_ISREG(at.st_mode) else ())))
    return tuple(found)


def _contiguous(tensors: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
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
    return _contiguous(tensors)


def _read_bank(file: Path, m: Manifest) -> Bank:
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
    )


def _read_layer(tensors: TensorFile, layer: Layer, precision: str, n: int) -> LayerBank:
    def column(name: str, present: bool) -> NDArray[np.float32] | None:
        return tensors.take(f"{name}.{layer.name}", np.float32, (n,)) if present else None

    metric: Metric = "cosine" if layer.metric == "cosine" else "squared_euclidean"
    width = layer.dim + (precision == "float32")
    return LayerBank(
        metric=metric,
        temperature=layer.temperature,
        rows=tensors.take(f"rows.{layer.name}", np.dtype(precision).type, (n, width), copy=False),
        center=tensors.take(f"center.{layer.name}", np.float32, (layer.dim,)),
        offsets=column("offsets", precision != "float32"),
        scales=column("scales", precision == "int8"),
    )


def _sorted(tensors: TensorFile, name: str, n: int | None) -> NDArray[np.float64]:
    a = tensors.take(name, np.float64, (n,))
    if len(a) < 1 or (np.diff(a) < 0).any():
        raise BundleError(f"{tensors.file}: array {name!r} must be sorted ascending and not empty")
    return a


def _read_calibration(file: Path, m: Manifest) -> Calibration:
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
    found = {p: _sorted(tensors, f"references.{p}", None) for p in m.parts}
    for key in (k.format(p) for p in m.parts if p in CLASS_PARTS for k in (CENTER, SCALE)):
        found[key] = tensors.take(f"references.{key}", np.float64, (len(m.classes),))
    for p in m.parts:
        if p in CLASS_PARTS and not (found[SCALE.format(p)] > 0).all():
            raise BundleError(f"{tensors.file}: array 'references.{SCALE.format(p)}' must be positive")
    return found


def _read_golden(file: Path, m: Manifest) -> Golden:
    tensors = TensorFile(file)
    inputs = tensors.take("inputs", np.dtype(m.input_dtype).type, (None, *m.input_shape))
    return Golden(
        inputs=inputs,
        outlier_scores=tensors.take("outlier_scores", np.float64, (len(inputs),)),
    )


def _read_used_rows(file: Path) -> UsedRows:
    tensors = TensorFile(file)

    def digests(name: str) -> NDArray[np.uint64]:
        return tensors.take(name, np.uint64, (None,))

    return UsedRows(
        seen=digests("seen"),
        calibration=digests("calibration"),
        references=digests("references") if "references" in tensors else np.zeros(0, np.uint64),  # an older bundle
    )
