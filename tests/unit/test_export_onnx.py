"""The detector as one ONNX model, run by plain onnxruntime in a process that cannot import softkin."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from networks import without_logits
from small_files import files_of_at_most
from softkin import BundleError, Detector, bundle, bundle_arrays, cli, conformal
from softkin.bank import Bank, LayerBank
from softkin.detector_graph import OUTPUTS
from softkin.export_onnx import export_onnx, write_export
from softkin.manifest import Layer
from softkin_training.build import LayerSpec, build

TOLERANCE = 1e-5
"""Relative, of outlier scores: the network and the bank run in float32, in batches of another size."""

PLAIN = """
import sys
sys.modules["softkin"] = None
import numpy as np, onnxruntime as ort
model, rows, out, prepacking = sys.argv[1:]
options = ort.SessionOptions()
options.add_session_config_entry("session.disable_prepacking", prepacking)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [o.name for o in session.get_outputs()]
np.savez(out, **dict(zip(names, session.run(names, {session.get_inputs()[0].name: np.load(rows)}))))
"""


def run_plain(model, x, tmp_path, *, prepacking=True):
    """Outputs by name, from a process that has NumPy and onnxruntime only."""
    np.save(tmp_path / "rows.npy", x)
    arguments = [str(model), str(tmp_path / "rows.npy"), str(tmp_path / "found.npz"), "0" if prepacking else "1"]
    subprocess.run([sys.executable, "-I", "-c", PLAIN, *arguments], check=True, timeout=120, cwd="/")
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found:
        return dict(found)


def same_scores(found, path, x, *, rounded=False):
    """The outputs of an export against `Detector.score`, and its p-values exactly those of its own scores.

    With `rounded` queries (int8), one row in a hundred may stand on the border between two levels and fall to either
    side, as the last bit of its representation has it.
    """
    expected, calibration = Detector.load(path, device="cpu").score(x), bundle.read_bundle(path).calibration
    score = found["outlier_score"]
    assert [found[n].dtype for n in OUTPUTS] == ["f8", "f8", "f8", "i4", "f8", "f8"]
    np.testing.assert_array_equal(found["p_value"], conformal.p_values(score, calibration.outlier_scores))
    finite = np.isfinite(expected.outlier_score)
    np.testing.assert_array_equal(score[~finite], expected.outlier_score[~finite])
    score, wanted = score[finite], expected.outlier_score[finite]
    off = np.abs(score - wanted) / np.maximum(np.abs(wanted), 1.0)
    assert (off <= TOLERANCE).mean() >= (0.99 if rounded else 1.0)
    assert off.max() <= (1e-2 if rounded else TOLERANCE)
    np.testing.assert_array_equal(found["predicted_class"], expected.predicted_class)
    for name in ("p_value", "class_p_values", "credibility", "confidence"):
        off = np.abs(found[name] - getattr(expected, name))
        passed = 4 if rounded else 1  # calibration scores that a score lies on, or beside by less than a level
        assert off.max() <= passed * 1.0001 / (expected.budget.calibration_size + 1), name
        assert (off == 0).mean() >= 0.99, name
    np.testing.assert_array_equal(found["credibility"], found["class_p_values"].max(axis=1))
    return expected


def variant(tiny, out, *, metric="cosine", form="joint", parts=None, model=None, **changes):
    """The tiny bundle in another form or metric."""
    layers = tuple(
        LayerSpec(name=layer.name, metric=metric, weight=w)
        for layer, w in zip(tiny.spec.layers, (1.0, 0.5), strict=True)
    )
    parts = (tiny.spec.parts if parts is None else parts) if form == "joint" else ()
    spec = dataclasses.replace(tiny.spec, layers=layers, nonconformity=form, parts=parts, **changes)
    build(out, model or tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    return out


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize(
    ("form", "parts"),
    [
        ("posterior", ()),
        ("density", ()),
        ("joint", ("posterior", "density", "density_last")),
        ("joint", ("energy",)),
        ("joint", ("boundary_distance", "density")),
        ("joint", ("density_hidden", "class_density_hidden", "class_density_last", "posterior_hidden")),
        ("joint", ("density_hidden_tail", "class_density_hidden_tail", "energy")),
    ],
)
def test_plain_onnxruntime_gives_the_numbers_of_the_detector(tiny, tmp_path, metric, form, parts):
    """Every form, both metrics, more rows than the detector runs at once; two files, well formed, and no others."""
    path = variant(tiny, tmp_path / "b", metric=metric, form=form, parts=parts)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "d.onnx"
    export_onnx(path, out)
    x = np.concatenate([tiny.inliers, tiny.outliers])

    found = run_plain(out, x, tmp_path)

    assert sorted(f.name for f in out.parent.iterdir()) == ["d.onnx", "d.onnx.data"]
    assert set(found) == {"logits", *OUTPUTS}
    expected = same_scores(found, path, x)
    assert (expected.p_value[:500] > 0.05).mean() > 0.8
    onnx.checker.check_model(str(out), full_check=True)


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize(
    "changes",
    [{"precision": "float16"}, {"precision": "int8"}],
    ids=["float16", "int8"],
)
def test_approximate_banks_are_exported_as_they_are(tiny, tmp_path, metric, changes):
    """In the bits that they have on disk, and plain onnxruntime multiplies them as the detector does."""
    path = variant(tiny, tmp_path / "b", metric=metric, **changes)
    done = export_onnx(path, tmp_path / "d.onnx")
    x = np.concatenate([tiny.inliers, tiny.outliers])

    same_scores(run_plain(done.model, x, tmp_path), path, x, rounded=changes["precision"] == "int8")

    assert done.data_bytes < export_onnx(tiny.path, tmp_path / "exact.onnx").data_bytes


def test_one_row_and_bare_embeddings(tiny, tmp_path):
    """A batch of one; without a network the class is that of the smallest nonconformity."""
    path = variant(tiny, tmp_path / "b", model=without_logits(tiny.model))
    export_onnx(path, tmp_path / "d.onnx")

    found = run_plain(tmp_path / "d.onnx", tiny.inliers[:1], tmp_path)

    assert set(found) == set(OUTPUTS)
    assert found["class_p_values"].shape == (1, 3)
    same_scores(found, path, tiny.inliers[:1])


def test_the_batch_axis_is_that_of_the_rows_where_constants_stand_among_the_inputs(tiny, tmp_path):
    """As old exporters list them, in any order."""
    model = onnx.load_from_string(tiny.model)
    rows = model.graph.input[0]
    rows.type.tensor_type.shape.dim[0].dim_param = "rows"
    constants = [helper.make_tensor_value_info(i.name, i.data_type, i.dims) for i in model.graph.initializer]
    inputs = [*constants, rows]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    proto = model.SerializeToString()
    build(tmp_path / "b", proto, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    export_onnx(tmp_path / "b", tmp_path / "d.onnx")

    outputs = onnx.load(tmp_path / "d.onnx", load_external_data=False).graph.output
    assert {o.type.tensor_type.shape.dim[0].dim_param for o in outputs if o.name != "logits"} == {"rows"}


def test_repeated_calibration_scores(tiny, tmp_path):
    """Ties among the calibration rows, as when scores are coarse."""
    loaded = bundle.read_bundle(tiny.path)
    c = loaded.calibration
    coarse = dataclasses.replace(
        c, outlier_scores=np.round(c.outlier_scores), true_class_scores=np.round(c.true_class_scores)
    )
    parts = {"bank": loaded.bank, "calibration": coarse, "golden": loaded.golden, "used_rows": loaded.used_rows}
    bundle.write_bundle(tmp_path / "b", loaded.manifest, model=tiny.model, **parts)
    export_onnx(tmp_path / "b", tmp_path / "d.onnx")

    found = run_plain(tmp_path / "d.onnx", tiny.inliers, tmp_path)

    assert len(np.unique(coarse.outlier_scores)) < 30
    same_scores(found, tmp_path / "b", tiny.inliers)


def test_a_row_on_which_the_network_overflows_is_the_strangest(tiny, tmp_path):
    """Infinite score, smallest p-value, nothing is NaN, and its batch mates do not notice."""
    export_onnx(tiny.path, tmp_path / "d.onnx")
    x = tiny.inliers[:4].copy()
    x[1], x[2] = 3e38 * np.sign(x[1]), np.nan

    found = run_plain(tmp_path / "d.onnx", x, tmp_path)

    assert found["outlier_score"][[1, 2]].tolist() == [np.inf, np.inf]
    assert found["p_value"][[1, 2]].tolist() == [1 / 301, 1 / 301]
    assert (found["class_p_values"][[1, 2]] == 1 / 301).all()
    assert not any(np.isnan(found[n]).any() for n in OUTPUTS)
    same_scores({k: v[[0, 1, 3]] for k, v in found.items()}, tiny.path, x[[0, 1, 3]])


def test_the_model_is_plain_and_its_data_are_aligned(tiny, tmp_path):
    """No control flow, no other domains, offsets on pages, metadata for the verdict; a large network moves too."""
    proto = onnx.load_from_string(tiny.model)
    big = np.random.default_rng(0).normal(size=(12, 30_000)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(big, "big"))
    proto.graph.node.append(helper.make_node("MatMul", ["inputs", "big"], ["unused"]))
    path = variant(tiny, tmp_path / "b", model=proto.SerializeToString())

    export_onnx(path, tmp_path / "d.onnx")

    model = onnx.load(tmp_path / "d.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]
    assert not {n.op_type for n in model.graph.node} & {"Loop", "Scan", "If"}
    assert {n.domain for n in model.graph.node} == {""}
    external = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    assert len(external) == 3
    assert {e["location"] for e in external.values()} == {"d.onnx.data"}
    assert all(int(e["offset"]) % 4096 == 0 for e in external.values())
    loaded = {t.name: t for t in onnx.load(tmp_path / "d.onnx").graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(loaded["big"]), big)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata["softkin.classes"]) == ["a", "b", "c"]
    assert float(metadata["softkin.default_alpha"]) == 0.05
    assert metadata["softkin.digest"] == bundle.digest(path)


def test_existing_files_are_replaced_only_when_asked(tiny, tmp_path, capsys):
    """Either of the two is enough to refuse; nothing else changes; --force replaces both."""
    out, data = tmp_path / "d.onnx", tmp_path / "d.onnx.data"
    data.write_text("mine")

    assert cli.main(["export-onnx", str(tiny.path), str(out)]) == 1
    assert f"{data}: exists already; pass --force to replace it" in capsys.readouterr().err
    assert (data.read_text(), list(tmp_path.iterdir())) == ("mine", [data])

    assert cli.main(["export-onnx", str(tiny.path), str(out), "--force"]) == 0
    assert cli.main(["export-onnx", str(tiny.path), str(out), "--force"]) == 0
    assert f"{out}: outputs logits, outlier_score, p_value" in capsys.readouterr().out
    assert sorted(f.name for f in tmp_path.iterdir()) == ["d.onnx", "d.onnx.data"]
    onnx.checker.check_model(str(out))


def test_paths_that_cannot_be_written_are_clear_errors(tiny, tiny_copy, tmp_path):
    """A missing directory, a file in its place, a directory in the file's place, the bundle itself."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for out, message in {
        tmp_path
        / "none"
        / "d.onnx": r"cannot write the export \(No such file or directory\); .*; make the directory .*/none f",
        tmp_path
        / "file"
        / "d.onnx": r"cannot write the export \(Not a directory\); .*; make the directory .* or choose another$",
        tmp_path / "folder": "it is a directory; choose another name",
        tiny_copy / "model.onnx": "lies inside the bundle",
        tmp_path / "caf\udce9.onnx": "UTF-8 cannot spell that; choose another name",
    }.items():
        with pytest.raises(BundleError, match=message):
            export_onnx(tiny_copy, out, force=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["copy", "file", "folder"]
    bundle.read_bundle(tiny_copy)


def test_a_directory_without_permission_is_a_clear_error(tiny, tmp_path):
    """The reason stands in the message."""
    loaded, user = bundle.read_bundle(tiny.path), os.geteuid()
    tmp_path.chmod(0o500)
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        with pytest.raises(BundleError, match=r"cannot write the export \(Permission denied\)"):
            write_export(loaded, tmp_path / "d.onnx")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tiny, tmp_path):
    """A write that fails half way, over an older export."""
    out = tmp_path / "d.onnx"
    export_onnx(tiny.path, out)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    words = r"cannot write the export \(.+\); nothing was changed there; make room, or choose another directory$"
    with files_of_at_most(10_000), pytest.raises(BundleError, match=words):
        export_onnx(tiny.path, out, force=True)

    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


class Overtaken(dict):
    """References of a calibration; while an export looks them up, somebody else writes its data file."""

    def __init__(self, references, data):
        super().__init__(references)
        self.data = data

    def __getitem__(self, key):
        self.data.write_text("of somebody else")
        return super().__getitem__(key)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_appears_while_the_export_is_written_is_replaced_only_by_force(tiny, tmp_path, force):
    """What was asked about replacing holds when the files are put in place, and neither is without the other."""
    loaded, data = bundle.read_bundle(tiny.path), tmp_path / "d.onnx.data"
    calibration = dataclasses.replace(loaded.calibration, references=Overtaken(loaded.calibration.references, data))
    refusal = pytest.raises(BundleError, match=r"d\.onnx\.data: exists already, written in the meantime")

    with nullcontext() if force else refusal:
        write_export(dataclasses.replace(loaded, calibration=calibration), tmp_path / "d.onnx", force=force)

    names = {"d.onnx", "d.onnx.data"} if force else {"d.onnx.data"}
    assert {f.name for f in tmp_path.iterdir()} == names
    assert force != (data.read_bytes() == b"of somebody else")


def test_an_export_that_scores_otherwise_is_refused(tiny, tmp_path):
    """The golden rows are scored before the files are in place."""
    loaded = bundle.read_bundle(tiny.path)
    wrong = dataclasses.replace(loaded.golden, outlier_scores=loaded.golden.outlier_scores + 1)

    with pytest.raises(BundleError, match="in the exported model"):
        write_export(dataclasses.replace(loaded, golden=wrong), tmp_path / "d.onnx")

    assert list(tmp_path.iterdir()) == []


def test_a_network_with_an_outputs_name_inside_is_refused(tiny, tmp_path):
    """Its tensor and ours would be one."""
    proto = onnx.load_from_string(tiny.model)
    proto.graph.node.append(helper.make_node("Identity", ["logits"], ["confidence"]))
    path = variant(tiny, tmp_path / "b", model=proto.SerializeToString())

    with pytest.raises(BundleError, match="has a tensor 'confidence', the name of an output"):
        export_onnx(path, tmp_path / "d.onnx")


@pytest.mark.slow
def test_a_bank_above_two_gigabytes(tiny, tmp_path):
    """What a protobuf cannot hold; the last row of the file is the one that answers."""
    width, n = 4095, 3 * 700 * 64
    rows = {"dtype": "F32", "shape": [n, width + 1], "data_offsets": [0, 4 * n * (width + 1)]}
    header = json.dumps({"rows.wide": rows}).encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / "b").mkdir()
    with (tmp_path / "b" / bundle.BANK).open("wb") as f:  # sparse: zeros, but for the last row
        f.write(struct.pack("<Q", len(header)) + header)
        start = f.tell()
        f.seek(start + 4 * (n - 1) * (width + 1))
        f.write(np.eye(1, width + 1, dtype=np.float32).tobytes())
    mapped = np.memmap(tmp_path / "b" / bundle.BANK, np.float32, "r", start, (n, width + 1))
    assert mapped.nbytes > 2**31
    bank = Bank(
        layers={"wide": LayerBank(metric="cosine", temperature=0.05, rows=mapped, center=np.zeros(width, np.float32))},
        labels=np.repeat(np.arange(3, dtype=np.int32), n // 3),
        ids=np.arange(n)[None],
        weights=np.ones((1, n), np.float32),
        num_classes=3,
    )
    value = helper.make_tensor_value_info
    network = helper.make_graph(
        [helper.make_node("LpNormalization", ["inputs"], ["representation.wide"], axis=1, p=2)],
        "wide",
        [value("inputs", TensorProto.FLOAT, ["batch", width])],
        [value("representation.wide", TensorProto.FLOAT, ["batch", width])],
    )
    model = helper.make_model(network, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "b" / bundle.MODEL)
    loaded = bundle.read_bundle(tiny.path)
    layer = Layer(name="wide", dim=width, metric="cosine", temperature=0.05, weight=1.0, reducer="none")
    manifest = dataclasses.replace(
        loaded.manifest, layers=(layer,), nonconformity="density", parts=(), input_shape=(width,)
    )
    nothing = bundle_arrays.Golden(inputs=np.zeros((0, width), np.float32), outlier_scores=np.zeros(0))
    big = dataclasses.replace(loaded, path=tmp_path / "b", manifest=manifest, bank=bank, golden=nothing)

    done = write_export(big, tmp_path / "d.onnx")

    assert done.data_bytes == mapped.nbytes
    onnx.checker.check_model(str(done.model))
    x = np.eye(2, width, dtype=np.float32)
    found = run_plain(done.model, x, tmp_path, prepacking=False)
    near = np.log(n // 3) - np.log1p((n // 3 - 1) * np.exp(-20.0))
    np.testing.assert_allclose(found["outlier_score"], [near, 20.0], rtol=1e-5)
    assert found["predicted_class"][0] == 2
    done.data.unlink()  # pytest keeps the directories of its last runs
