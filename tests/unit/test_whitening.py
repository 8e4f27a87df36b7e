"""Whitened representations: the map, the map in a model, and a bundle made with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from softkin import Detector
from softkin.bundle import read_bundle
from softkin.mass import class_mass
from softkin.scorer import reducer_key
from softkin_training import class_scatter, rows
from softkin_training.build import build
from softkin_training.subject import Subject
from softkin_training.whitening import DESCRIPTION, SHRINKAGE, Whitening, whitenings_of, with_whitening

PARTS = ("density_last", "class_density", "class_density_hidden", "class_density_last", "posterior_hidden")


def stretched(rng, n, classes=3, width=5):
    """Rows that vary a hundred times more in one direction than in another."""
    y = np.arange(n) % classes
    return (rng.normal(size=(classes, width))[y] + rng.normal(size=(n, width)) * 10.0 ** -np.arange(width) + 3.0), y


@pytest.fixture(scope="module")
def whitened(tiny, tmp_path_factory):
    """The tiny bundle, whitened, in a joint form of all that is new."""
    path = tmp_path_factory.mktemp("whitened") / "b"
    spec = dataclasses.replace(tiny.spec, whiten=True, parts=PARTS)
    build(path, tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    return path


@pytest.mark.parametrize("together", [7, 1 << 13], ids=["part by part", "each class whole"])
def test_covariance_within_classes_becomes_the_identity_but_for_the_shrinkage(together, monkeypatch):
    """Against loops: variance v becomes v / ((1 - s) v + s times their mean), in the directions of the covariance."""
    for module in (class_scatter, rows):
        monkeypatch.setattr(module, "ROWS_TOGETHER", together)
    z, y = stretched(np.random.default_rng(0), 300)

    whitening = Whitening.fit(z.astype(np.float32), y, "cosine")

    covariance = np.zeros((5, 5))
    for j in range(3):
        for row in z[y == j]:
            off = row - z[y == j].mean(axis=0)
            covariance += np.outer(off, off) / len(z)
    variances, directions = np.linalg.eigh(covariance)
    expected = variances / ((1 - SHRINKAGE) * variances + SHRINKAGE * variances.mean())
    found = directions.T @ whitening.matrix.T @ covariance @ whitening.matrix @ directions
    np.testing.assert_allclose(found, np.diag(expected), atol=1e-4)
    np.testing.assert_allclose(whitening.apply(z.astype(np.float32)).mean(axis=0), 0.0, atol=1e-4)


def test_rows_are_whitened_where_they_are_part_by_part(monkeypatch):
    """As those are that are whitened at once: rows on disk take no memory."""
    monkeypatch.setattr(rows, "ROWS_TOGETHER", 7)
    z, y = stretched(np.random.default_rng(0), 30)
    z = z.astype(np.float32)
    whitening = Whitening.fit(z, y, "cosine")
    expected = whitening.apply(z)

    whitening.overwrite(z)

    np.testing.assert_allclose(z, expected, rtol=1e-6, atol=1e-6)


def test_undoing_gives_the_rows_back():
    """To float32 rounding, although directions differ by orders of magnitude."""
    z, y = stretched(np.random.default_rng(1), 200)
    z = z.astype(np.float32)
    whitening = Whitening.fit(z, y, "cosine")

    np.testing.assert_allclose(whitening.undo(whitening.apply(z)), z, rtol=1e-4, atol=1e-4)


def test_rows_that_equal_their_class_mean_are_left_at_their_distances():
    """No spread gives no unit: the map only centers."""
    z = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)

    whitening = Whitening.fit(z, np.repeat(np.arange(3), 4), "cosine")

    assert np.isfinite(whitening.matrix).all()
    distances = np.linalg.norm(whitening.apply(z)[:, None] - whitening.apply(z), axis=2)
    np.testing.assert_allclose(
        distances, np.linalg.norm(z[:, None] - z, axis=2) / np.sqrt(SHRINKAGE), rtol=1e-5, atol=1e-6
    )


def test_the_model_gives_whitened_representations_under_their_names(tiny):
    """One layer is whitened, the other and the logits are untouched; the map can be read back."""
    rng = np.random.default_rng(2)
    x = tiny.inliers[:40]
    before = dict(zip(*_run(tiny.model, x), strict=True))
    whitening = Whitening.fit(before["representation.wide"], rng.integers(0, 3, 40), "cosine")

    model = with_whitening(tiny.model, {"wide": whitening})

    after = dict(zip(*_run(model, x), strict=True))
    wide = before["representation.wide"]
    np.testing.assert_allclose(after["representation.wide"], whitening.apply(wide), rtol=1e-4, atol=1e-4)
    for name in ("logits", "representation.narrow"):
        np.testing.assert_array_equal(after[name], before[name])
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    (layer, found), *others = whitenings_of(onnx.load_from_string(model)).items()
    assert (layer, found.metric, others) == ("wide", "cosine", [])
    np.testing.assert_array_equal(found.matrix, whitening.matrix)
    assert whitenings_of(onnx.load_from_string(tiny.model)) == {}


def test_what_else_reads_a_representation_reads_it_as_it_was(tiny):
    """The rest of the network, and so its logits, know nothing of whitening. A metric is read back as it was given."""
    model = onnx.load_from_string(tiny.model)
    model.graph.node.append(helper.make_node("Identity", ["representation.wide"], ["read"]))
    model.graph.output.append(helper.make_tensor_value_info("read", TensorProto.FLOAT, ["batch", 12]))
    x = tiny.inliers[:40]
    before = dict(zip(*_run(model.SerializeToString(), x), strict=True))
    whitening = Whitening.fit(before["representation.wide"], np.zeros(40, int), "squared_euclidean")

    whitened = with_whitening(model.SerializeToString(), {"wide": whitening})

    after = dict(zip(*_run(whitened, x), strict=True))
    np.testing.assert_array_equal(after["read"], before["read"])
    assert not np.allclose(after["representation.wide"], before["representation.wide"])
    assert whitenings_of(onnx.load_from_string(whitened))["wide"].metric == "squared_euclidean"


@pytest.mark.parametrize(
    ("before", "after"), [(None, DESCRIPTION), ("none", DESCRIPTION), ("pool", f"pool + {DESCRIPTION}")]
)
def test_whitening_is_told_beside_what_reduced_the_layer_before(tiny, before, after):
    """In the model's metadata, where there was something."""
    model = onnx.load_from_string(tiny.model)
    del model.metadata_props[:]
    if before is not None:
        model.metadata_props.add(key=reducer_key("wide"), value=before)
    whitening = Whitening(center=np.zeros(12, np.float32), matrix=np.eye(12, dtype=np.float32), metric="cosine")

    whitened = onnx.load_from_string(with_whitening(model.SerializeToString(), {"wide": whitening}))

    assert [p.value for p in whitened.metadata_props if p.key == reducer_key("wide")] == [after]


def test_a_whitened_bundle_says_so_and_scores_by_whitened_distances(tiny, whitened):
    """The manifest's words; and masses against the reference on rows whitened by hand."""
    bundle = read_bundle(whitened)
    plain = read_bundle(tiny.path)

    assert {(layer.metric, layer.reducer) for layer in bundle.manifest.layers} == {("squared_euclidean", DESCRIPTION)}
    outputs = Detector(bundle).outputs(tiny.inliers[:30])
    model = onnx.load(whitened / "model.onnx")
    assert {p.key: p.value for p in model.metadata_props}[reducer_key("wide")] == DESCRIPTION
    raw = dict(zip(*_run(tiny.model, tiny.inliers[:30]), strict=True))
    real = plain.bank.labels >= 0
    for i, layer in enumerate(bundle.manifest.layers):
        bank, labels = plain.bank.layers[layer.name].representations(real), plain.bank.labels[real]
        whitening = Whitening.fit(bank, labels, "cosine")
        expected = class_mass(
            whitening.apply(raw[f"representation.{layer.name}"]),
            whitening.apply(bank),
            labels,
            num_classes=3,
            temperature=layer.temperature,
            metric="squared_euclidean",
        )
        np.testing.assert_allclose(outputs.masses[:, i], expected, rtol=1e-3, atol=1e-2)


def test_other_scores_get_what_was_there_before_whitening(tiny, whitened):
    """A whitened bundle is compared with the baselines that the plain one is compared with: same rows, same metric."""
    ours, plain = Subject(read_bundle(whitened)), Subject(read_bundle(tiny.path))

    for layer in plain.layers:
        assert ours.metric(layer) == plain.metric(layer) == "cosine"
        np.testing.assert_allclose(ours.neighbors[layer], plain.neighbors[layer], atol=1e-5)
        a, b = ours.run(tiny.outliers), plain.run(tiny.outliers)
        np.testing.assert_allclose(a.z[layer], b.z[layer], atol=1e-5)
        np.testing.assert_allclose(a.kth(layer), b.kth(layer), atol=1e-4)


def test_entanglement_of_a_whitened_bundle_is_that_of_its_network(tiny, whitened, tmp_path, capsys):
    """The command gives what it gives for the plain bundle: whitening is no part of the network."""
    pytest.importorskip("torch")
    from softkin_training.cli import main

    np.savez(tmp_path / "d.npz", x_test=tiny.calibration.x, y_test=tiny.calibration.y)
    printed = []
    for path in (tiny.path, whitened):
        assert main(["entanglement", str(path), "--data", str(tmp_path / "d.npz")]) == 0
        printed.append(capsys.readouterr().out.split())

    assert [w[:5] for w in printed[0]] == [w[:5] for w in printed[1]]


def test_rows_that_calibrate_a_whitened_bundle_keep_its_false_alarm_rate(tiny, whitened):
    """500 fresh inliers at alpha = 0.2: within 5 deviations; and outliers are found."""
    detector = Detector.load(whitened, device="cpu")

    flagged = (detector.score(tiny.inliers).p_value <= 0.2).mean()

    assert abs(flagged - 0.2) < 5 * np.sqrt(0.2 * 0.8 * (1 / 300 + 1 / 500))
    assert (detector.score(tiny.outliers).p_value <= 0.05).mean() > 0.8


def _run(model: bytes, x: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return names, session.run(names, {session.get_inputs()[0].name: x})
