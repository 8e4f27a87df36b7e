"""Scoring in process, with a real bundle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from softkin import BundleError, Detector, InvalidInputError, conformal, mass
from softkin.bank import PADDING_LABEL
from softkin.bundle import MANIFEST, MODEL, read_bundle
from softkin_training.build import LayerSpec, build
from unfit_rows import UNFIT_ROWS


@pytest.fixture(scope="module")
def detector(tiny):
    """The tiny bundle on the CPU."""
    return Detector.load(tiny.path, device="cpu")


def test_outliers_are_flagged_and_inliers_hardly(detector, tiny):
    """The point of it all."""
    inliers, outliers = detector.score(tiny.inliers), detector.score(tiny.outliers)

    assert inliers.is_outlier.mean() < 0.1
    assert outliers.is_outlier.mean() > 0.8
    assert np.median(outliers.outlier_score) > np.median(inliers.outlier_score)


def test_the_answer_says_what_stands_behind_it(detector, tiny):
    """Every score carries detector, digest, device, alpha, n and the smallest p-value."""
    budget = detector.score(tiny.inliers[:2], alpha=0.1).budget

    assert (budget.detector, budget.version, budget.device, budget.alpha) == ("tiny", "1", "cpu", 0.1)
    assert budget.digest == detector.digest
    assert budget.calibration_size == 300
    assert budget.smallest_p_value == 1 / 301


def test_a_detector_says_in_a_line_what_it_is(detector, tiny):
    """In a notebook, or a log."""
    m = detector.manifest
    assert repr(detector) == (
        f"<Detector tiny version 1: {len(m.classes)} classes, {len(tiny.bank)} bank rows, 300 calibration rows, on cpu>"
    )


def test_verdict_is_p_value_at_most_alpha(detector, tiny):
    """alpha is inclusive and can be given per call."""
    scores = detector.score(tiny.inliers)

    for alpha in (0.01, 0.2, float(scores.p_value[3])):
        assert (detector.score(tiny.inliers, alpha=alpha).is_outlier == (scores.p_value <= alpha)).all()


def test_rows_may_be_whatever_numpy_makes_an_array_of(detector, tiny):
    """As for the clients: tensors and lists of rows, and a clear word about numbers of another type."""
    rows = tiny.inliers[:3]
    expected = detector.score(rows).p_value

    for x in (list(rows), tuple(rows), torch.from_numpy(rows)):
        assert (detector.score(x).p_value == expected).all()
    with pytest.raises(InvalidInputError, match="dtype is float64, this detector takes float32"):
        detector.score(rows.tolist())


@pytest.mark.parametrize(("make", "message"), UNFIT_ROWS)
def test_what_makes_no_whole_array_is_refused(detector, tiny, make, message):
    """Not by an error of NumPy's, and no hidden value is scored."""
    with pytest.raises(InvalidInputError, match=message):
        detector.score(make(tiny.inliers[:3]))


def test_a_masked_array_that_hides_nothing_is_an_array(detector, tiny):
    """As its readers make them of files without gaps."""
    rows = tiny.inliers[:3]

    assert (detector.score(np.ma.masked_invalid(rows)).p_value == detector.score(rows).p_value).all()


def test_rows_may_be_of_either_byte_order(detector, tiny):
    """Files of other machines have the other one; over the wire it never mattered."""
    rows = tiny.inliers[:3]
    expected = detector.score(rows, smoothing_seed=1)

    for order in "<>":
        found = detector.score(rows.astype(rows.dtype.newbyteorder(order)), smoothing_seed=1)
        assert (found.outlier_score == expected.outlier_score).all()
        assert (found.p_value == expected.p_value).all()


def test_masses_are_those_of_the_reference(detector, tiny):
    """The whole chain, network and scorer, against NumPy on the representations."""
    bundle = read_bundle(tiny.path)
    real = bundle.bank.labels != PADDING_LABEL
    x = tiny.inliers[:20]
    z = {"wide": mass.unit_rows(x), "narrow": mass.unit_rows(x[:, :6])}

    found = detector.outputs(x).masses

    for i, (name, layer) in enumerate(bundle.bank.layers.items()):
        expected = mass.class_mass(
            z[name],
            layer.rows[real, :-1],
            bundle.bank.labels[real],
            num_classes=3,
            temperature=layer.temperature,
            metric="cosine",
        )
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-4, atol=1e-4)


def test_a_rows_score_does_not_depend_on_its_batch_mates(detector, tiny):
    """Alone, in company, or in another place: equal to 1e-5 relative."""
    x = np.concatenate([tiny.inliers[:40], tiny.outliers[:40]])
    order = np.random.default_rng(0).permutation(len(x))

    together = detector.score(x).outlier_score
    shuffled = np.empty_like(together)
    shuffled[order] = detector.score(x[order]).outlier_score
    alone = np.concatenate([detector.score(row[None]).outlier_score for row in x])

    np.testing.assert_allclose(shuffled, together, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-5)


def test_large_arrays_are_scored_in_slices_with_the_same_result(detector, tiny):
    """600 rows cross the slice size twice."""
    x = np.concatenate([tiny.inliers, tiny.inliers])[:600]

    found = detector.score(x, num_neighbors=2)

    assert found.neighbors is not None
    assert found.neighbors.ids.shape == (600, 2, 2)
    np.testing.assert_allclose(found.outlier_score[500:], found.outlier_score[:100], rtol=1e-5, atol=1e-5)


def test_neighbors_are_the_nearest_bank_rows(detector, tiny):
    """Ids, labels and distances equal those of a brute-force search; shares are shares of the whole mass."""
    x = tiny.inliers[:10]
    found = detector.score(x, num_neighbors=4).neighbors

    assert found is not None
    assert found.layers == ("wide", "narrow")
    d = mass.distances(x, tiny.bank.x, "cosine")
    nearest = np.argsort(d, axis=1)[:, :4]
    assert (found.ids[:, 0] == tiny.bank.ids[nearest]).all()
    assert (found.labels[:, 0] == tiny.bank.y[nearest]).all()
    np.testing.assert_allclose(found.distances[:, 0], np.take_along_axis(d, nearest, axis=1), atol=1e-5)
    temperature = detector.manifest.layers[0].temperature
    weight = np.exp(-d / temperature)
    shares = np.take_along_axis(weight, nearest, axis=1) / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.shares[:, 0], shares, rtol=1e-3)


@pytest.mark.parametrize("condensed", [1.0, 10.0])
def test_neighbors_of_every_layer_are_named_by_that_layer(tiny, tmp_path, condensed):
    """A condensed bank has prototypes of its own in each: other ids, other weights."""
    spec = replace(tiny.spec, condense=condensed)
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    bank, x = read_bundle(tmp_path / "b").bank, tiny.inliers[:10]

    found = Detector.load(tmp_path / "b", device="cpu").score(x, num_neighbors=4).neighbors

    real = np.flatnonzero(bank.labels != PADDING_LABEL)
    for at, (layer, width) in enumerate(zip(bank.layers.values(), (12, 6), strict=True)):
        own = at if condensed > 1 else 0
        d = mass.distances(mass.unit_rows(x[:, :width]), layer.representations(real), "cosine")
        nearest = np.argsort(d - layer.temperature * np.log(bank.weights[own][real]), axis=1)[:, :4]
        assert (found.ids[:, at] == bank.ids[own][real][nearest]).all()
        np.testing.assert_allclose(found.distances[:, at], np.take_along_axis(d, nearest, axis=1), atol=1e-4)


def test_the_evidence_says_what_each_score_is_made_of(detector, tiny):
    """The parts of the joint form by name; nothing of it where no evidence is asked for."""
    x = np.concatenate([tiny.inliers, tiny.inliers])[:600]

    found = detector.score(x, num_neighbors=1)

    assert found.parts is not None
    assert found.parts.names == detector.manifest.parts
    assert found.parts.values.shape == (600, len(detector.manifest.parts))
    np.testing.assert_allclose(np.sqrt((found.parts.values**2).sum(axis=1)), found.outlier_score, rtol=1e-12)
    assert detector.score(x[:1]).parts is None


@pytest.mark.parametrize("form", ["density", "posterior"])
def test_the_score_of_a_sum_is_made_of_its_layers(tiny, tmp_path, form):
    """Each layer's term among those of the calibration rows, by layers' names, in the order of the evidence."""
    layers = (tiny.spec.layers[0], replace(tiny.spec.layers[1], weight=0.5))
    spec = replace(tiny.spec, layers=layers, nonconformity=form, parts=())
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    detector = Detector.load(tmp_path / "b", device="cpu")
    x = np.concatenate([tiny.inliers[:300], tiny.outliers])

    found = detector.score(x, num_neighbors=1)

    def terms(x, i):
        outputs, n, weight = detector.outputs(x), len(tiny.bank.y) / 3, (1.0, 0.5)[i]
        at = np.arange(len(x)), outputs.logits.argmax(axis=1)
        if form == "posterior":
            m = outputs.masses[:, i].astype(np.float64)
            others = np.arange(3) != at[1][:, None]
            share = np.exp(m[others].reshape(-1, 2) - m[at][:, None]).sum(axis=1)
            return weight * np.log1p(np.where(share < 2**-23, 0.0, share))
        return weight * (np.log(n) - outputs.masses[:, i].astype(np.float64)[at])

    assert found.parts.names == found.neighbors.layers == ("wide", "narrow")
    for i in range(2):
        known = np.sort(terms(tiny.calibration.x, i))
        np.testing.assert_allclose(
            found.parts.values[:, i], conformal.tail_surprise(terms(x, i), known), rtol=1e-5, atol=1e-5
        )
    usual = found.parts.values[:300]
    assert (usual > 3).mean() < 0.12
    # Of a network that is sure of everything most rows have one posterior, and are strange in none.
    assert (0.4 < np.median(usual) < 1.0) if form == "density" else (np.median(usual) == 0)


def test_more_neighbors_than_bank_rows_gives_all_rows(detector, tiny):
    """Padding never shows up as a neighbour."""
    found = detector.score(tiny.inliers[:1], num_neighbors=10_000).neighbors

    assert found is not None
    assert sorted(found.ids[0, 0]) == sorted(tiny.bank.ids)
    np.testing.assert_allclose(found.shares[0].sum(axis=1), 1.0, rtol=1e-4)


def test_threads_get_their_own_rows_back(detector, tiny):
    """`score` from 8 threads at once equals one after the other."""
    batches = np.array_split(tiny.inliers, 20)
    expected = [detector.score(b).p_value for b in batches]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda b: detector.score(b).p_value, batches))

    assert all((a == b).all() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        pytest.param(np.zeros((2, 12)), "dtype is float64, this detector takes float32", id="dtype"),
        pytest.param(np.zeros((2, 11), np.float32), r"shape is \[2, 11\], .* takes \[rows, 12\]", id="shape"),
        pytest.param(np.zeros(12, np.float32), r"shape is \[12\], .*; send a single row as \[1, 12\]", id="rank"),
        pytest.param(np.zeros((0, 12), np.float32), "there are no rows; send at least 1", id="empty"),
        pytest.param(
            np.array([[0.0] * 12, [np.nan] + [0.0] * 11], np.float32),
            "row 1 has NaN or infinity; every value",
            id="NaN",
        ),
        pytest.param(np.full((1, 12), np.inf, np.float32), "row 0 has NaN or infinity", id="infinity"),
    ],
)
def test_unfit_inputs_are_refused(detector, x, message):
    """What is wrong, and what this detector takes."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        detector.score(x)
    assert caught.value.field == "inputs"


def test_an_unknown_neighbor_count_or_alpha_is_refused(detector, tiny):
    """The field is named."""
    with pytest.raises(InvalidInputError, match="num_neighbors: got -1"):
        detector.score(tiny.inliers, num_neighbors=-1)
    with pytest.raises(InvalidInputError, match=r"alpha: got 0\.001, but 300 calibration rows"):
        detector.score(tiny.inliers, alpha=0.001)


def test_far_outliers_and_zero_rows_get_finite_scores(detector):
    """No NaN, no infinity, however strange the row."""
    x = np.array([[0.0] * 12, [1e15] * 12, [-1e-15] * 12], np.float32)

    scores = detector.score(x)

    assert np.isfinite(scores.outlier_score).all()
    assert ((scores.p_value > 0) & (scores.p_value <= 1)).all()


def test_a_row_that_overflows_the_network_is_the_strangest_of_all(detector, tiny):
    """Finite input, infinite logits: flagged with the smallest p-value, and its batch mates are untouched."""
    x = np.stack([tiny.inliers[0], np.full(12, 3e38, np.float32)])

    scores = detector.score(x)

    assert scores.outlier_score[1] == np.inf
    assert scores.p_value[1] == detector.smallest_p_value
    assert scores.outlier_score[0] == pytest.approx(detector.score(x[:1]).outlier_score[0], rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_row_on_which_a_layer_overflows_has_no_neighbors_there(tiny, tmp_path, precision):
    """No padding row and no NaN is handed out as evidence, and batch mates keep theirs."""
    model = onnx.load_from_string(tiny.model)
    for node in model.graph.node:
        if node.output[0] == "representation.wide":  # as it comes: rows of 3e38 overflow in squares
            node.op_type = "Identity"
            del node.attribute[:]
    layers = (LayerSpec(name="narrow", metric="cosine"), LayerSpec(name="wide", metric="squared_euclidean"))
    spec = replace(tiny.spec, layers=layers, nonconformity="density", parts=(), precision=precision)
    build(tmp_path / "b", model.SerializeToString(), spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    detector = Detector.load(tmp_path / "b", device="cpu")
    x = np.stack([tiny.inliers[0], np.full(12, 3e38, np.float32), np.full(12, 1e30, np.float32)])

    found, alone = detector.score(x, num_neighbors=300).neighbors, detector.score(x[:1], num_neighbors=300).neighbors

    for row in (1, 2):
        assert (found.ids[row, 1] == -1).all()
        assert (found.labels[row, 1] == -1).all()
        assert (found.distances[row, 1] == np.inf).all()
        assert (found.shares[row, 1] == 0).all()
    assert (found.labels.dtype, found.ids.dtype) == (np.int32, np.int64)
    assert (found.labels[:, 0] >= 0).all()
    assert (np.sort(found.ids[0, 1]) == np.arange(300)).all()
    np.testing.assert_allclose(found.distances[0], alone.distances[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [5, None, b"bundle", ["bundle"]])
def test_what_is_no_path_is_refused_as_such(path):
    """Not as the standard library would put it."""
    with pytest.raises(InvalidInputError, match=r"^path: got .*; must be a path$"):
        Detector.load(path)


def test_a_bundle_that_scores_its_golden_rows_differently_does_not_load(tiny, monkeypatch):
    """Another device or library version may not move scores unnoticed."""
    bundle = read_bundle(tiny.path)
    object.__setattr__(bundle.golden, "outlier_scores", bundle.golden.outlier_scores + 0.1)

    with pytest.raises(BundleError, match=r"golden row \d+ scores .* when built"):
        Detector(bundle, device="cpu")


@pytest.mark.parametrize("golden", [True, False])
@pytest.mark.parametrize("columns", [2, 6])
def test_a_network_that_hides_its_number_of_classes_is_found_out_when_it_is_loaded(tiny, tiny_copy, columns, golden):
    """Of a class that the bank does not know a request would ask for scores in vain."""
    model = onnx.load_from_string(tiny.model)
    weights = next(i for i in model.graph.initializer if i.name == "w")
    weights.CopyFrom(numpy_helper.from_array(np.resize(numpy_helper.to_array(weights), (12, columns)), "w"))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (tiny_copy / MODEL).write_bytes(model.SerializeToString())
    bundle = replace(read_bundle(tiny.path), path=tiny_copy)
    if not golden:
        none = replace(bundle.golden, inputs=bundle.golden.inputs[:0], outlier_scores=bundle.golden.outlier_scores[:0])
        bundle = replace(bundle, golden=none)

    with pytest.raises(BundleError, match=rf"model\.onnx: has {columns} logits, the bank has 3 classes; build"):
        Detector(bundle, device="cpu")


def test_a_network_whose_boundaries_are_of_other_classes_is_found_out_when_it_is_loaded(tiny, tiny_copy):
    """Its distances would be those of other classes than the masses beside them."""
    model = onnx.load_from_string(tiny.model)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((12, 2), np.float32), "v"))
    model.graph.node.append(helper.make_node("MatMul", ["inputs", "v"], ["boundary_distance"]))
    model.graph.output.append(helper.make_tensor_value_info("boundary_distance", TensorProto.FLOAT, None))
    (tiny_copy / MODEL).write_bytes(model.SerializeToString())

    with pytest.raises(BundleError, match=r"model\.onnx: has 2 boundary_distance, the bank has 3 classes; build"):
        Detector(replace(read_bundle(tiny.path), path=tiny_copy), device="cpu")


def test_an_answer_says_how_long_the_device_and_the_calibration_took(detector, tiny):
    """What a server's metrics are made of."""
    seconds = detector.score(tiny.inliers[:2]).stage_seconds

    assert set(seconds) == {"infer", "calibrate"}
    assert all(0 < s < 60 for s in seconds.values())


def test_a_network_whose_input_has_another_name_than_the_manifest_says_is_refused(tiny_copy):
    """It is the network of another bundle."""
    file = tiny_copy / MANIFEST
    file.write_text(file.read_text().replace('"inputs"', '"pixels"'))

    with pytest.raises(BundleError, match=r"model\.onnx: its input is 'inputs', the manifest says 'pixels'"):
        Detector.load(tiny_copy, device="cpu")
