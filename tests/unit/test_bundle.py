"""Bundles on disk: whole or not at all, and refused when anything is off."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from networks import without_logits
from small_files import files_of_at_most
from softkin import BundleError, DataError, Detector
from softkin import bundle as bundles
from softkin.certificate import certify
from softkin.export_onnx import export_onnx
from softkin.scorer import Scorer
from softkin_training.build import build


def edit_manifest(path: Path, change) -> None:
    """Rewrite manifest.json after `change(dict)`."""
    raw = json.loads((path / "manifest.json").read_text())
    change(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


def edit_tensors(path: Path, file: str, change) -> None:
    """Rewrite a tensor file after `change(dict)`, with size and sha256 put right, as a wrong builder would."""
    tensors = load_file(path / file)
    change(tensors)
    save_file(tensors, path / file)
    data = (path / file).read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(path, lambda m: m["files"].__setitem__(file, entry))


def edit_model(path: Path, model: bytes) -> None:
    """Put another network in the bundle, with size and sha256 put right, as a wrong builder would."""
    (path / bundles.MODEL).write_bytes(model)
    entry = {"sha256": hashlib.sha256(model).hexdigest(), "size": len(model)}
    edit_manifest(path, lambda m: m["files"].__setitem__(bundles.MODEL, entry))


def test_what_is_written_is_what_is_read(tiny):
    """Manifest, bank, calibration and golden rows survive the trip."""
    bundle = bundles.read_bundle(tiny.path)

    assert bundle.manifest == bundles.read_manifest(tiny.path)
    assert bundle.digest == hashlib.sha256((tiny.path / "manifest.json").read_bytes()).hexdigest()
    assert bundle.bank.size == bundle.manifest.bank_size == 300
    assert len(bundle.calibration.outlier_scores) == bundle.manifest.calibration_size == 300
    assert {len(r) for r in bundle.calibration.references.values()} == {300}
    assert bundle.golden.inputs.shape == (16, 12)
    assert bundle.manifest.predicted_class_rows == bundle.calibration.rows_by_predicted_class(3)
    assert bundle.manifest.certificate == certify(0.05, 300)
    for digests in vars(bundle.used_rows).values():
        assert (np.diff(digests.astype(object)) > 0).all()
    assert len(bundle.used_rows.seen) == 300 + 300
    assert len(bundle.used_rows.calibration) == 300
    assert not np.isin(bundle.used_rows.calibration, bundle.used_rows.seen).any()


@pytest.mark.parametrize("file", bundles.DATA_FILES)
def test_one_altered_byte_is_found(tiny_copy, file):
    """Anywhere in any file; the error names the file and what to do."""
    data = bytearray((tiny_copy / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_copy / file).write_bytes(data)

    with pytest.raises(BundleError, match=rf"{file}: its sha256 is not the manifest's.*build it again"):
        bundles.read_bundle(tiny_copy)


@pytest.mark.parametrize("file", bundles.DATA_FILES)
def test_a_truncated_or_missing_file_is_found(tiny_copy, file):
    """Sizes are compared before anything is parsed."""
    data = (tiny_copy / file).read_bytes()
    (tiny_copy / file).write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"{file}: has {len(data) - 1} bytes, the manifest says {len(data)}"):
        bundles.read_bundle(tiny_copy)

    (tiny_copy / file).unlink()
    with pytest.raises(BundleError, match=rf"{file}: cannot be read \(No such file"):
        bundles.read_bundle(tiny_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda m: m.update(format_version=9), "format_version is 9, this softkin reads 4", id="future"),
        pytest.param(lambda m: m.pop("classes"), "classes must be a list", id="missing list"),
        pytest.param(lambda m: m["classes"].append("\udce9"), "classes is .* must be names that", id="class name"),
        pytest.param(lambda m: m.pop("created"), "missing field 'created'", id="missing field"),
        pytest.param(lambda m: m.update(extra=1), "unknown field 'extra'", id="unknown field"),
        pytest.param(lambda m: m.update(bank_size="300"), "bank_size must be int, got '300'", id="type"),
        pytest.param(
            lambda m: m.update(bank_precision="int4"), "bank_precision is 'int4'; must be one of", id="precision"
        ),
        pytest.param(
            lambda m: m.update(condensed_from=7), "condensed_from is 7; must be 0, or at least", id="condensed"
        ),
        pytest.param(
            lambda m: m.update(approximation={"budget": 1}), "approximation: missing field", id="approximation"
        ),
        pytest.param(lambda m: m.update(bank_size=True), "bank_size must be int, got True", id="bool is no int"),
        pytest.param(lambda m: m.update(bank_size=301), "holds 300 rows, the manifest says bank_size 301", id="rows"),
        pytest.param(lambda m: m.update(default_alpha=1.5), "default_alpha is 1.5; must lie in", id="alpha"),
        pytest.param(lambda m: m.update(name="../x"), r"name is '\.\./x'", id="path as name"),
        pytest.param(lambda m: m.update(input_shape=[0]), "input_shape", id="shape"),
        pytest.param(lambda m: m["layers"][0].update(metric="l1"), "metric of wide is 'l1'; must be one", id="metric"),
        pytest.param(lambda m: m["layers"][0].update(temperature=-1.0), "temperature of wide", id="temperature"),
        pytest.param(lambda m: m["layers"][0].pop("dim"), r"layers\[0\]: missing field 'dim'", id="layer field"),
        pytest.param(lambda m: m["files"].pop("model.onnx"), "model.onnx: not listed", id="file not listed"),
        pytest.param(lambda m: m.update(parts=[]), "parts", id="joint without parts"),
        pytest.param(
            lambda m: m["predicted_class_rows"].__setitem__(0, 0),
            r"predicted_class_rows is \(0, .*must sum to calibration_size",
            id="rows by class",
        ),
        pytest.param(
            lambda m: m["predicted_class_rows"].append(0),
            "predicted_class_rows .*must sum to calibration_size",
            id="rows of a class too many",
        ),
        pytest.param(
            lambda m: m.pop("predicted_class_rows"), "predicted_class_rows must be a list", id="no rows by class"
        ),
        pytest.param(lambda m: m.pop("certificate"), "certificate: expected an object, got None", id="no certificate"),
        pytest.param(
            lambda m: m["certificate"].pop("false_alarm_bound"),
            "certificate: missing field 'false_alarm_bound'",
            id="certificate field",
        ),
        pytest.param(
            lambda m: m["certificate"].update(alpha=0.1),
            "certificate.alpha is 0.1; must be default_alpha",
            id="certificate of another alpha",
        ),
        pytest.param(
            lambda m: m["certificate"].update(confidence=1.0),
            r"certificate.confidence is 1.0; must lie in \(0, 1\)",
            id="certificate without doubt",
        ),
        pytest.param(
            lambda m: m["certificate"].update(false_alarm_bound=float("nan")),
            r"certificate.false_alarm_bound is nan; must lie in \[0, 1\]",
            id="bound that is no rate",
        ),
        pytest.param(
            lambda m: m["layers"][0].update(weight=10**400),
            "weight of wide is 10+; must be positive",
            id="huge integer",
        ),
    ],
)
def test_a_wrong_manifest_is_refused(tiny_copy, change, message):
    """The error names the file and the field."""
    edit_manifest(tiny_copy, change)

    with pytest.raises(BundleError, match=message) as caught:
        bundles.read_bundle(tiny_copy)
    assert str(tiny_copy) in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "list", "cut", "binary", "deep"]
)
def test_a_manifest_that_is_no_json_object_is_refused(tiny_copy, text):
    """Never a traceback of the parser."""
    (tiny_copy / "manifest.json").write_bytes(text)

    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundles.read_manifest(tiny_copy)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path):
    """Says what a bundle is."""
    with pytest.raises(BundleError, match=r"cannot be read .* a bundle is a directory with a manifest\.json"):
        bundles.read_bundle(tmp_path)


def _drop_row(tensors):
    tensors["rows.wide"] = tensors["rows.wide"][:-1]


def _nan(tensors):
    tensors["rows.narrow"][5, 0] = np.nan


def _label(tensors):
    tensors["labels"][:] = np.where(tensors["labels"] == 2, 1, tensors["labels"])


def _straddle(tensors):
    tensors["labels"][1] = 2


def _unsorted(tensors):
    tensors["outlier_scores"][[7, 8]] = tensors["outlier_scores"][[8, 7]]


def _put(name, value):
    return lambda tensors: tensors[name].put(0, value)


def _swap_classes(tensors):
    tensors["predicted_classes"] = np.where(tensors["predicted_classes"] == 2, 1, tensors["predicted_classes"])


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        pytest.param(bundles.BANK, _drop_row, r"rows\.wide' is float32\[.*asks for float32", id="shape"),
        pytest.param(bundles.BANK, _nan, r"rows\.narrow' has values that are not finite", id="NaN"),
        pytest.param(bundles.BANK, _label, "labels do not cover exactly the 3 classes", id="class without rows"),
        pytest.param(bundles.BANK, _straddle, "not laid out in tiles", id="tile with two classes"),
        pytest.param(bundles.BANK, lambda t: t.pop("ids"), "has no array 'ids'", id="missing array"),
        pytest.param(bundles.CALIBRATION, _unsorted, "'outlier_scores' must be sorted ascending", id="unsorted"),
        pytest.param(bundles.CALIBRATION, lambda t: t.pop("references.density"), "references.density", id="reference"),
        pytest.param(bundles.CALIBRATION, lambda t: t.update(true_class_scores=np.zeros(0)), "not empty", id="none"),
        pytest.param(bundles.CALIBRATION, _swap_classes, "not the manifest's predicted_class_rows", id="class sizes"),
        pytest.param(bundles.CALIBRATION, _put("predicted_classes", 3), r"must hold classes in \[0, 3\)", id="class"),
        pytest.param(bundles.CALIBRATION, _put("true_classes", -1), "'true_classes' must hold", id="negative"),
        pytest.param(bundles.BANK, _put("weights", 0), "weights of rows must be positive", id="weight"),
        pytest.param(bundles.GOLDEN, lambda t: t.pop("inputs"), "has no array 'inputs'", id="golden"),
        pytest.param(bundles.USED_ROWS, lambda t: t.pop("seen"), "has no array 'seen'", id="used rows"),
    ],
)
def test_arrays_that_disagree_are_refused(tiny_copy, file, change, message):
    """Even with the right checksums: file, array, what was found and what is asked for."""
    edit_tensors(tiny_copy, file, change)

    with pytest.raises(BundleError, match=message) as caught:
        bundles.read_bundle(tiny_copy)
    assert file in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("references.class_density.center"), "has no array 'references.class_density.center'"),
        (
            lambda t: t["references.class_density.scale"].fill(0.0),
            r"'references\.class_density\.scale' must be positive",
        ),
    ],
)
def test_class_parts_need_center_and_spread_of_every_class(tiny, tmp_path, change, message):
    """A joint form with a class part is refused without them; the error names the array."""
    spec = dataclasses.replace(tiny.spec, parts=("density", "class_density"))
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    edit_tensors(tmp_path / "b", bundles.CALIBRATION, change)

    with pytest.raises(BundleError, match=message):
        bundles.read_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer_terms.narrow"), "has no array 'layer_terms.narrow'"),
        (lambda t: t["layer_terms.wide"][:2].fill(1e9), r"'layer_terms\.wide' must be sorted ascending"),
        (
            lambda t: t.update({"layer_terms.wide": t["layer_terms.wide"][1:].copy()}),
            r"layer_terms\.wide' is float64\[",
        ),
    ],
)
def test_forms_that_sum_layers_need_the_terms_of_every_layer(tiny, tmp_path, change, message):
    """One for each calibration row; the error names the array."""
    spec = dataclasses.replace(tiny.spec, nonconformity="density", parts=())
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    edit_tensors(tmp_path / "b", bundles.CALIBRATION, change)

    with pytest.raises(BundleError, match=message):
        bundles.read_bundle(tmp_path / "b")


def test_a_model_without_the_banks_layer_is_refused(tiny, tmp_path):
    """Layer names must exist in the model; the error lists what does."""
    spec = dataclasses.replace(
        tiny.spec, layers=(*tiny.spec.layers, dataclasses.replace(tiny.spec.layers[0], name="ghost"))
    )

    with pytest.raises(DataError, match=r"no output 'representation\.ghost'; it has 'logits', "):
        build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_other_classes_is_refused(tiny, tiny_copy):
    """A prediction of class 3 of 3 would be an index out of range in the middle of a request."""
    model = onnx.load_from_string(tiny.model)
    weights = next(i for i in model.graph.initializer if i.name == "w")
    weights.CopyFrom(numpy_helper.from_array(np.repeat(numpy_helper.to_array(weights), 2, axis=1), "w"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    edit_model(tiny_copy, model.SerializeToString())

    for use in (partial(Detector.load, device="cpu"), partial(export_onnx, out=tiny_copy.with_name("d.onnx"))):
        with pytest.raises(BundleError, match=r"model\.onnx: has 6 logits, the bank has 3 classes"):
            use(tiny_copy)


@pytest.mark.parametrize(("part", "lacks"), [("energy", "logits"), ("boundary_distance", "boundary_distance")])
def test_a_network_without_what_a_part_is_made_of_is_refused(tiny, tmp_path, part, lacks):
    """Refused when it is loaded, not by a failed assertion when it scores."""
    out = tmp_path / "b"
    spec = dataclasses.replace(tiny.spec, parts=(part, "density"))
    build(out, tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    edit_model(out, without_logits(tiny.model) if lacks == "logits" else tiny.model)

    with pytest.raises(BundleError, match=rf"model\.onnx: has no {lacks}, which the part '{part}' needs"):
        Detector.load(out, device="cpu")


def test_a_network_of_an_old_opset_is_refused(tiny, tmp_path):
    """Its operators take their axes otherwise: named here, instead of failing somewhere in the runtime."""
    model = onnx.load_from_string(tiny.model)
    model.opset_import[0].version = 17

    with pytest.raises(BundleError, match="is of opset 17; the scorer needs 18 or newer"):
        build(
            tmp_path / "b",
            model.SerializeToString(),
            tiny.spec,
            bank_rows=tiny.bank,
            calibration_rows=tiny.calibration,
        )


def test_a_network_that_does_not_fit_the_bank_is_refused_by_name(tiny, tmp_path):
    """The runtime's own message says which widths, not which bundle."""
    model = onnx.load_from_string(tiny.model)
    first = next(node for node in model.graph.node if node.output[0] == "first")
    first.op_type = "Identity"  # twice as wide
    del first.input[1:]
    model.graph.output[2].type.tensor_type.ClearField("shape")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    with pytest.raises(BundleError, match=f"onnxruntime cannot load the model and bank of {tiny.path}: "):
        Scorer(tmp_path / "model.onnx", bundles.read_bundle(tiny.path).bank, tiny.path / bundles.BANK, device="cpu")


def test_an_existing_bundle_is_replaced_only_when_asked(tiny, tmp_path):
    """Never overwritten by accident; replaced in one step otherwise."""
    out = tmp_path / "b"
    arguments = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(out, tiny.model, tiny.spec, **arguments)

    with pytest.raises(BundleError, match="exists already; choose another directory"):
        build(out, tiny.model, tiny.spec, **arguments)
    build(out, tiny.model, tiny.spec, **arguments, replace=True)

    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    Detector.load(out, device="cpu")


def test_a_failed_replacement_brings_the_old_bundle_back(tiny, tmp_path, monkeypatch):
    """The old one is set aside before the new one takes its place; when that fails, it must not be lost."""
    out = tmp_path / "b"
    arguments = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(out, tiny.model, tiny.spec, **arguments)
    before = bundles.digest(out)
    rename = Path.rename

    def fail_into_place(self, target):
        if Path(target) == out and self.name == "b":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(BundleError, match=r"cannot write the bundle \(Input/output error\); nothing was changed"):
        build(out, tiny.model, dataclasses.replace(tiny.spec, version="2"), **arguments, replace=True)

    assert bundles.digest(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_full_disk_leaves_nothing_behind(tiny, tmp_path):
    """A write that fails half way: clear error, no half bundle, the old one untouched."""
    loaded = bundles.read_bundle(tiny.path)
    model = (tiny.path / bundles.MODEL).read_bytes()
    names = ("bank", "calibration", "golden", "used_rows")
    arguments = {name: getattr(loaded, name) for name in names}
    words = r"cannot write the bundle \(.+\); nothing was changed there; make room, or choose another directory$"
    with files_of_at_most(10_000), pytest.raises(BundleError, match=words):
        bundles.write_bundle(tmp_path / "b", loaded.manifest, model=model, **arguments)

    assert list(tmp_path.iterdir()) == []
