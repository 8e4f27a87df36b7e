"""From a model and rows to a bundle, without torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.distance import cdist

import resealed
from softkin import DataError, Detector
from softkin.bundle import USED_ROWS, read_bundle
from softkin.certificate import certify
from softkin.nonconformity import Nonconformity
from softkin.precision import reduce_precision
from softkin.scorer import Network
from softkin_training import bank_temperature
from softkin_training.bank_temperature import neighbor_distance
from softkin_training.build import LayerSpec, build
from softkin_training.condense import condense
from softkin_training.expose import EMBEDDING, embedding_network
from softkin_training.row_contents import digests64, fingerprint
from softkin_training.rows import Rows


def rebuild(tiny, out, *, bank=None, calibration=None, **changes):
    """The tiny bundle with something changed."""
    spec = dataclasses.replace(tiny.spec, **changes)
    calibration = tiny.calibration if calibration is None else calibration  # which may have no row
    build(out, tiny.model, spec, bank_rows=bank or tiny.bank, calibration_rows=calibration)
    return out


@pytest.mark.parametrize("form", ["posterior", "density", "joint"])
def test_calibration_scores_are_those_of_the_serving_detector(tiny, tmp_path, form):
    """Calibration rows, scored by the loaded detector, give exactly the stored scores."""
    parts = tiny.spec.parts if form == "joint" else ()
    path = rebuild(tiny, tmp_path / "b", nonconformity=form, parts=parts)
    stored = read_bundle(path).calibration.outlier_scores

    found = Detector.load(path, device="cpu").score(tiny.calibration.x).outlier_score

    positions = np.searchsorted(stored, found - 1e-6)
    matched = (positions < len(stored)) & (
        np.abs(stored[np.minimum(positions, len(stored) - 1)] - found) <= 1e-5 * np.maximum(np.abs(found), 1)
    )
    assert matched.sum() >= len(stored)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_rows_in_fewer_bits_are_read_as_they_were_rounded(tiny, tmp_path, precision):
    """With what stands beside them: by it they are shown, compared and exported."""
    expected = reduce_precision(read_bundle(tiny.path).bank, precision)

    found = read_bundle(rebuild(tiny, tmp_path / "b", precision=precision)).bank

    for name, layer in found.layers.items():
        assert layer.rows.dtype == precision
        for part in (slice(None), slice(3, 9)):
            np.testing.assert_array_equal(layer.representations(part), expected.layers[name].representations(part))
            np.testing.assert_array_equal(layer.row_offsets(part), expected.layers[name].row_offsets(part))


def test_auto_takes_the_fewest_bits_within_the_budget(tiny, tmp_path):
    """int8, then float16, then float32, each held against the exact bank."""
    change = read_bundle(rebuild(tiny, tmp_path / "int8", precision="int8")).manifest.approximation.max_p_value_change

    loose = read_bundle(rebuild(tiny, tmp_path / "a", precision="auto", max_p_value_change=change)).manifest
    tight = read_bundle(rebuild(tiny, tmp_path / "b", precision="auto", max_p_value_change=change / 2)).manifest
    none = read_bundle(rebuild(tiny, tmp_path / "c", precision="auto", max_p_value_change=1e-9)).manifest

    assert loose.bank_precision == "int8"
    assert loose.approximation.budget == change
    assert tight.bank_precision == "float16"
    assert (none.bank_precision, none.approximation) == ("float32", None)


def test_auto_passes_over_float16_where_it_cannot_hold_the_rows(tiny, tmp_path):
    """float32 can; asked for by name it is refused."""
    x = (1e5 * np.random.default_rng(0).normal(size=(300, 8))).astype(np.float32)
    network = embedding_network(x, metric="squared_euclidean", max_dim=8, seed=0)
    spec = dataclasses.replace(
        tiny.spec,
        classes=("all",),
        layers=(LayerSpec(name=EMBEDDING, metric="squared_euclidean"),),
        nonconformity="density",
        parts=(),
        precision="auto",
        max_p_value_change=1e-9,
    )
    bank, calibration = (Rows(x[i], np.zeros(len(i), np.int64), i) for i in np.split(np.arange(300), [200]))
    rows = {"bank_rows": bank, "calibration_rows": calibration}

    assert build(tmp_path / "b", network.model, spec, **rows).bank_precision == "float32"
    with pytest.raises(DataError, match=r"bank: a representation holds .*, too large for float16; use float32 or int8"):
        build(tmp_path / "c", network.model, dataclasses.replace(spec, precision="float16"), **rows)


def test_an_error_budget_that_cannot_be_kept_is_refused(tiny, tmp_path):
    """With what was tried, what came out, and the remedy; nothing is written."""
    with pytest.raises(DataError, match=r"change by up to 0\.\d+ in int8; max_p_value_change allows 1e-06: raise it"):
        rebuild(tiny, tmp_path / "b", precision="int8", max_p_value_change=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_the_same_inputs_build_the_same_arrays(tiny, tmp_path):
    """Everything but the time of creation is a function of model, spec and rows."""
    a, b = (read_bundle(rebuild(tiny, tmp_path / name)) for name in ("a", "b"))

    assert a.manifest.files == b.manifest.files


def test_the_manifest_names_the_rows_it_was_made_from(tiny):
    """Fingerprints of bank and of the rows that calibrate."""
    found = read_bundle(tiny.path).manifest.provenance["fingerprints"]

    assert found["bank"] == fingerprint(tiny.bank.x)
    assert len(found["calibration"]) == 64


def test_calibration_rows_from_the_bank_are_refused(tiny, tmp_path):
    """By id, and by content under other ids."""
    same_id = tiny.bank.take(np.arange(40))
    with pytest.raises(DataError, match="bank and calibration share 40 examples, the first with id 0"):
        rebuild(tiny, tmp_path / "b", calibration=same_id)

    copies = Rows(
        np.concatenate([tiny.calibration.x, tiny.bank.x[7:9]]),
        np.concatenate([tiny.calibration.y, tiny.bank.y[7:9]]),
        np.concatenate([tiny.calibration.ids, [9001, 9002]]),
    )
    with pytest.raises(DataError, match=r"calibration has 2 rows whose content also stands in bank.*example 9001"):
        rebuild(tiny, tmp_path / "b", calibration=copies)
    assert list(tmp_path.iterdir()) == []


def test_too_few_calibration_rows_for_alpha_are_refused(tiny, tmp_path):
    """With the number that is needed."""
    few = tiny.calibration.take(np.arange(36))

    with pytest.raises(DataError, match=r"18 rows cannot give a p-value of 0\.05; at least 19"):
        rebuild(tiny, tmp_path / "b", calibration=few)


def test_too_few_calibration_rows_for_the_joint_form_are_told_how_many_will_do(tiny, tmp_path):
    """One reference row puts nothing on a scale; with as many rows as the message says it is built."""
    with pytest.raises(DataError, match=r"2 rows are too few for the joint form, which at alpha = 0\.2.* least 8:"):
        rebuild(tiny, tmp_path / "b", calibration=tiny.calibration.take(np.arange(2)), alpha=0.2)

    rebuild(tiny, tmp_path / "b", calibration=tiny.calibration.take(np.arange(8)), alpha=0.2)
    rebuild(tiny, tmp_path / "fewest", calibration=tiny.calibration.take(np.arange(4)), alpha=0.4)


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize("which", ["bank", "calibration"])
def test_labels_that_are_no_index_of_a_class_name_are_refused(tiny, tmp_path, which, shift):
    """Of neither kind of row; one below 0 would count from the last class."""
    rows = getattr(tiny, which)
    wrong = dataclasses.replace(rows, y=rows.y + shift)

    message = rf"{which}: labels must lie in \[0, 3\); got \[{shift}, {2 + shift}\]"
    with pytest.raises(DataError, match=message):
        rebuild(tiny, tmp_path / "b", **{which: wrong})


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_an_alpha_that_is_no_rate_of_false_alarms_is_refused(tiny, tmp_path, alpha):
    """At 1 every row would be an outlier, at 0 none."""
    with pytest.raises(DataError, match=rf"alpha is {alpha:g}; it is a false-alarm rate and must lie strictly in"):
        rebuild(tiny, tmp_path / "b", alpha=alpha)


def test_without_a_calibration_row_as_many_are_asked_for_as_are_needed(tiny, tmp_path):
    """As with a few."""
    none = tiny.calibration.take(np.arange(0))

    message = r"^calibration: 0 rows cannot give a p-value of 0\.05; at least 19 are needed$"
    with pytest.raises(DataError, match=message):
        rebuild(tiny, tmp_path / "b", calibration=none, nonconformity="density", parts=())


def test_calibration_rows_that_overflow_the_network_are_refused(tiny, tmp_path):
    """They are meant to be inliers; wherever the draw puts them, the example is named."""
    x = tiny.calibration.x.copy()
    x[:8] = 3e38

    with pytest.raises(DataError, match=r"calibration: the network overflows on example 100\d"):
        rebuild(tiny, tmp_path / "b", calibration=Rows(x, tiny.calibration.y, tiny.calibration.ids))


@pytest.mark.parametrize("drawn", [0, -1], ids=["set aside", "calibrating"])
def test_one_row_that_overflows_the_network_is_refused_wherever_it_is_drawn(tiny, tmp_path, drawn):
    """Set aside, it would make the scale of the joint form infinite; calibrating, it would make every row look near."""
    order = np.random.default_rng(tiny.spec.seed).permutation(len(tiny.calibration))
    x = tiny.calibration.x.copy()
    x[order[drawn]] = 3e38

    with pytest.raises(DataError, match=f"the network overflows on example {1000 + order[drawn]};"):
        rebuild(tiny, tmp_path / "b", calibration=Rows(x, tiny.calibration.y, tiny.calibration.ids))


def test_a_bundle_remembers_which_rows_it_saw_and_which_calibrate(tiny, tmp_path):
    """Those set aside are among the seen, for they made the scale; a file that holds either must not calibrate anew."""
    loaded = read_bundle(rebuild(tiny, tmp_path / "b"))

    order = np.random.default_rng(tiny.spec.seed).permutation(600)
    aside, calibrating = (tiny.calibration.x[part] for part in (order[:300], order[300:]))
    np.testing.assert_array_equal(loaded.used_rows.seen, digests64(np.concatenate([tiny.bank.x, aside])))
    np.testing.assert_array_equal(loaded.used_rows.calibration, digests64(calibrating))
    np.testing.assert_array_equal(loaded.used_rows.references, digests64(aside))
    alone = read_bundle(rebuild(tiny, tmp_path / "d", nonconformity="density", parts=()))
    assert len(alone.used_rows.references) == 0


def test_a_bundle_that_does_not_tell_which_rows_were_set_aside_is_read(tiny_copy):
    """As those of older versions are."""
    resealed.change_arrays(tiny_copy, USED_ROWS, lambda tensors: tensors.pop("references"))

    assert len(read_bundle(tiny_copy).used_rows.references) == 0


def test_a_certificate_is_of_the_rows_that_calibrate(tiny, tmp_path):
    """Neither of the bank's rows nor of those set aside."""
    few = tiny.bank.take(np.arange(210))

    manifest = read_bundle(rebuild(tiny, tmp_path / "b", bank=few)).manifest

    assert (manifest.bank_size, manifest.calibration_size, manifest.certificate) == (210, 300, certify(0.05, 300))


def test_calibration_weighs_layers_as_the_serving_detector_does(tiny, tmp_path):
    """With other weights p-values would compare scores of two kinds."""
    layers = tuple(dataclasses.replace(s, weight=w) for s, w in zip(tiny.spec.layers, (2.0, 0.5), strict=True))
    path = rebuild(tiny, tmp_path / "b", nonconformity="density", parts=(), layers=layers)

    found = Detector.load(path).score(tiny.calibration.x).outlier_score
    np.testing.assert_allclose(read_bundle(path).calibration.outlier_scores, np.sort(found), rtol=1e-6)


def test_parts_are_put_on_one_scale_by_references_of_the_same_weights(tiny, tmp_path):
    """A row's density is ranked among those of reference rows: with other weights it would be among strangers."""
    few = tiny.calibration.take(np.arange(40))
    layers = tuple(dataclasses.replace(s, weight=w) for s, w in zip(tiny.spec.layers, (2.0, 0.5), strict=True))
    path = rebuild(tiny, tmp_path / "b", calibration=few, parts=("density", "density_last"), layers=layers)

    bundle = read_bundle(path)
    form = Nonconformity(
        form="density",
        class_weights=bundle.bank.class_weights,
        layer_weights=np.array([layer.weight for layer in layers]),
    )
    aside = few.take(np.random.default_rng(tiny.spec.seed).permutation(40)[:20])
    expected = form.part_score("density", Detector(bundle).outputs(aside.x))
    np.testing.assert_allclose(bundle.calibration.references["density"], np.sort(expected), rtol=1e-6)


def test_prototypes_of_a_layer_keep_their_own_weights_and_ids(tiny, tmp_path):
    """Each layer parts the rows in its own way."""
    loaded = read_bundle(rebuild(tiny, tmp_path / "b", condense=5.0))

    z, rows = Network(loaded.path / "model.onnx").run(tiny.bank.x), tiny.bank
    found = [dict(zip(*pair, strict=True)) for pair in zip(loaded.bank.ids, loaded.bank.weights, strict=True)]
    for layer, of_layer in zip(("wide", "narrow"), found, strict=True):
        p = condense(z[f"representation.{layer}"], rows.y, rows.ids, ratio=5.0, metric="cosine", seed=0)
        assert of_layer == dict(zip(p.ids, p.weights, strict=True)) | {-1: 0.0}
    assert found[0] != found[1]


def test_probe_rows_come_from_all_over_the_bank(tiny, tmp_path):
    """From the first to the last, so that a file sorted by class has rows of most; their scores are those served."""
    path = rebuild(tiny, tmp_path / "b")
    golden = read_bundle(path).golden

    np.testing.assert_array_equal(golden.inputs, tiny.bank.x[[(len(tiny.bank) - 1) * i // 15 for i in range(16)]])
    np.testing.assert_array_equal(golden.outlier_scores, Detector.load(path).score(golden.inputs).outlier_score)


def test_rows_that_the_network_was_trained_on_do_not_calibrate(tiny, tmp_path):
    """Though they are not in the bank: the network knows them."""
    with pytest.raises(DataError, match="calibration has 3 rows whose content also stands in the training rows"):
        build(
            tmp_path / "b",
            tiny.model,
            tiny.spec,
            bank_rows=tiny.bank,
            calibration_rows=tiny.calibration,
            train_x=np.concatenate([tiny.bank.x, tiny.calibration.x[:3]]),
        )


def test_class_names_must_match_the_logits(tiny, tmp_path):
    """A model with three logits and four names is a mistake."""
    with pytest.raises(DataError, match="3 logits, but 4 class names"):
        rebuild(tiny, tmp_path / "b", classes=("a", "b", "c", "d"))


@pytest.mark.parametrize("metric", ["cosine", "squared_euclidean"])
def test_neighbor_distance_is_the_median_of_nearest_distances(metric):
    """Against a loop; copies of a row do not count."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 4)).astype(np.float32)
    z[1] = z[0]

    found = neighbor_distance(z, np.arange(60), metric)

    def distance(a, b):
        if metric == "cosine":
            return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return ((a - b) ** 2).sum()

    nearest = [min(d for j in range(60) if (d := distance(z[i], z[j])) > 1e-5) for i in range(60)]
    assert found == pytest.approx(float(np.median(nearest)), rel=1e-3)


@pytest.mark.parametrize("metric", ["cosine", "sqeuclidean"])
def test_neighbor_distance_is_of_the_sample_among_all_rows(metric, monkeypatch):
    """More rows than fit one part, in any order, of sizes from 0.001 to 1000 and with zeros among their numbers."""
    monkeypatch.setattr(bank_temperature, "COMPARED_TOGETHER", 128)
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(600, 4)) * 10 ** rng.uniform(-3, 3, (600, 1))).astype(np.float32)
    z[::2, 0] = 0.0
    if metric == "sqeuclidean":
        z[17] = 0.0
    sample = rng.permutation(600)[:530]

    found = neighbor_distance(z, sample, "cosine" if metric == "cosine" else "squared_euclidean")

    distances = cdist(z.astype(np.float64), z.astype(np.float64), metric)
    np.fill_diagonal(distances, np.inf)
    assert found == pytest.approx(float(np.median(distances.min(axis=1)[sample])), rel=1e-3)


def test_a_collapsed_layer_is_refused():
    """Equal representations everywhere carry no information."""
    with pytest.raises(DataError, match="all representations of a layer are equal"):
        neighbor_distance(np.ones((5, 3), np.float32), np.arange(5), "cosine")
