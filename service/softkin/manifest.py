"""The manifest of a bundle: what the detector is, and the sha256 of every file beside it."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from softkin.bank import PRECISIONS
from softkin.certificate import Certificate
from softkin.errors import BundleError, is_unicode
from softkin.mass import METRICS
from softkin.nonconformity import FORMS, PARTS

FORMAT_VERSION = 4
INPUT_DTYPES = ("uint8", "int32", "int64", "float32", "float64")
_T = TypeVar("_T")
NAME_LENGTH = 63
"""Most characters of a name or version."""
CLASS_P_VALUES = "class_p_values"
"""Key of the provenance: which labelled rows class p-values rest on; absent where they are the rows of p-values too."""
INPUT_COLUMNS = "input_columns"
"""Key of the provenance: names of the columns of a table that its rows are made of; absent where it was no table."""
NAMED_ROWS = "named_rows"
"""Key of the provenance: how many rows of the bank have a name that evidence gives; absent where none has."""
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LENGTH - 1}}}")
"""Names and versions of detectors."""
NAME_RULE = f"1 to {NAME_LENGTH} letters, digits, '.', '_' or '-', the first a letter or a digit"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer whose representations the bank holds."""

    name: str
    dim: int
    """Width of the reduced representation."""
    metric: str
    temperature: float
    """Temperature of the soft nearest neighbours, in units of the metric."""
    weight: float
    """Weight in the sums over layers."""
    reducer: str
    """How the raw activations became `dim` numbers, for instance `none` or `gaussian-projection(6272->256, seed=0)`."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Approximation:
    """What a bank of fewer bits or fewer rows changes, against all rows in float32, each calibrated by itself.

    Measured on the calibration rows when the bundle was built; scoring never reads it.
    """

    budget: float
    """Largest change of a p-value that the builder accepted; 1 where it set no limit."""
    max_p_value_change: float
    mean_p_value_change: float
    verdict_changes: float
    """Share of rows whose verdict at the default alpha differs."""
    auroc_changes: dict[str, Any]
    """AUROC after less AUROC before, against each outlier set that the builder was given."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a detector that is not an array."""

    name: str
    version: str
    created: str
    """UTC time, ISO 8601."""
    input_name: str
    input_dtype: str
    input_shape: tuple[int, ...]
    """Axes of one row, without the batch axis."""
    classes: tuple[str, ...]
    layers: tuple[Layer, ...]
    nonconformity: str
    parts: tuple[str, ...] = ()
    """The parts of the joint form; empty for the others."""
    default_alpha: float
    calibration_size: int
    predicted_class_rows: tuple[int, ...]
    """Calibration rows by the class that the network predicted."""
    certificate: Certificate
    bank_size: int
    """Rows in the bank, without padding."""
    bank_precision: str = "float32"
    condensed_from: int = 0
    """Training rows that the bank's weighted prototypes stand for; 0: its rows are training rows themselves."""
    approximation: Approximation | None = None
    """None: all rows in float32, nothing is approximate."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Recipe, seeds, split fingerprints, library versions: for people; scoring never reads it."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"


def parse_manifest(text: str, source: str) -> Manifest:
    """Parse and check a manifest.

    Args:
        text: contents of manifest.json.
        source: path to name in errors.

    Raises:
        BundleError: not JSON, from another format version, or a field is missing, unknown, of the wrong type or out of
            range; the message names the file and the field.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{source}: not valid JSON ({e}); the bundle is damaged, copy or build it again") from None
    if not isinstance(raw, dict):
        raise BundleError(f"{source}: expected a JSON object, got {type(raw).__name__}")
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{source}: format_version is {version!r}, this softkin reads {FORMAT_VERSION}; use the softkin that built "
            "the bundle, or build it again"
        )
    raw = dict(raw)
    raw["layers"] = tuple(
        _build(Layer, x, f"{source}: layers[{i}]") for i, x in enumerate(_as_list(raw, "layers", source))
    )
    raw["files"] = {k: _build(FileEntry, x, f"{source}: files.{k}") for k, x in _as_dict(raw, "files", source).items()}
    raw["certificate"] = _build(Certificate, raw.get("certificate"), f"{source}: certificate")
    for key in ("input_shape", "classes", "parts", "predicted_class_rows"):
        raw[key] = tuple(_as_list(raw, key, source))
    if raw.get("approximation") is not None:
        raw["approximation"] = _build(Approximation, raw["approximation"], f"{source}: approximation")
    manifest = _build(Manifest, raw, source)
    _check_values(manifest, source)
    return manifest


def _as_list(raw: Mapping[str, Any], key: str, source: str) -> list[Any]:
    if not isinstance(raw.get(key), list):
        raise BundleError(f"{source}: {key} must be a list, got {raw.get(key)!r}")
    return list(raw[key])


def _as_dict(raw: Mapping[str, Any], key: str, source: str) -> dict[str, Any]:
    if not isinstance(raw.get(key), dict):
        raise BundleError(f"{source}: {key} must be an object, got {raw.get(key)!r}")
    return dict(raw[key])


_SCALARS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "dict[str, Any]": (dict,)}


def _build(cls: type[_T], raw: Any, where: str) -> _T:
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # every caller passes a dataclass
    if not isinstance(raw, dict):
        raise BundleError(f"{where}: expected an object, got {raw!r}")
    if odd := sorted(raw.keys() ^ fields.keys()):
        what = "unknown" if odd[0] in raw else "missing"
        raise BundleError(f"{where}: {what} field {odd[0]!r}")
    for name, f in fields.items():
        allowed = _SCALARS.get(str(f.type))
        if allowed and (not isinstance(raw[name], allowed) or isinstance(raw[name], bool)):
            raise BundleError(f"{where}: {name} must be {f.type}, got {raw[name]!r}")
    return cls(**raw)


def _check_values(m: Manifest, source: str) -> None:
    def require(ok: bool, field_name: str, value: object, allowed: str) -> None:
        if not ok:
            raise BundleError(f"{source}: {field_name} is {value!r}; {allowed}")

    def positive(x: float) -> bool:
        return 0 < x <= sys.float_info.max  # not math.isfinite: JSON has whole numbers that no float holds

    for key, value in {"name": m.name, "version": m.version}.items():
        require(bool(NAME.fullmatch(value)), key, value, f"must be {NAME_RULE}")
    require(m.input_dtype in INPUT_DTYPES, "input_dtype", m.input_dtype, f"must be one of {', '.join(INPUT_DTYPES)}")
    axes = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in m.input_shape)
    require(axes, "input_shape", m.input_shape, "must be positive integers")
    names = all(isinstance(c, str) and is_unicode(c) for c in m.classes)
    require(bool(m.classes) and names, "classes", m.classes, "must be names that UTF-8 can spell")
    require(bool(m.layers), "layers", m.layers, "must not be empty")
    layers = [layer.name for layer in m.layers]
    require(len(set(layers)) == len(layers), "layers", layers, "names must be unique")
    for layer in m.layers:
        require(layer.metric in METRICS, f"metric of {layer.name}", layer.metric, f"must be one of {METRICS}")
        require(positive(layer.temperature), f"temperature of {layer.name}", layer.temperature, "must be positive")
        require(positive(layer.weight), f"weight of {layer.name}", layer.weight, "must be positive")
        require(layer.dim > 0, f"dim of {layer.name}", layer.dim, "must be positive")
    require(m.nonconformity in FORMS, "nonconformity", m.nonconformity, f"must be one of {FORMS}")
    require(all(p in PARTS for p in m.parts), "parts", m.parts, f"must be among {PARTS}")
    require(bool(m.parts) == (m.nonconformity == "joint"), "parts", m.parts, "belong to the joint form and only to it")
    require(0 < m.default_alpha < 1, "default_alpha", m.default_alpha, "must lie in (0, 1)")
    require(m.calibration_size > 0, "calibration_size", m.calibration_size, "must be positive")
    sizes = m.predicted_class_rows
    counts = len(sizes) == len(m.classes) and all(isinstance(n, int) and n >= 0 for n in sizes)
    require(counts and sum(sizes) == m.calibration_size, "predicted_class_rows", sizes, "must sum to calibration_size")
    c = m.certificate
    require(c.alpha == m.default_alpha, "certificate.alpha", c.alpha, "must be default_alpha")
    require(0 < c.confidence < 1, "certificate.confidence", c.confidence, "must lie in (0, 1)")
    for key, rate in {"false_alarm_bound": c.false_alarm_bound, "smallest_certified": c.smallest_certified}.items():
        require(0 <= rate <= 1, f"certificate.{key}", rate, "must lie in [0, 1]")
    require(m.bank_size > 0, "bank_size", m.bank_size, "must be positive")
    require(m.bank_precision in PRECISIONS, "bank_precision", m.bank_precision, f"must be one of {PRECISIONS}")
    fits = m.condensed_from == 0 or m.condensed_from >= m.bank_size
    require(fits, "condensed_from", m.condensed_from, "must be 0, or at least bank_size")
