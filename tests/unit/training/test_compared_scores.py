"""Which scores a bundle allows beside its own, and that they see its network, its bank and its calibration rows."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx
import pytest

from softkin import bundle as bundles
from softkin import conformal, mass
from softkin.nonconformity import fit_references, outlier_score
from softkin.scorer import Network
from softkin_training import baselines
from softkin_training.build import build
from softkin_training.compared_scores import compared_scores
from softkin_training.detection_metrics import auroc, fpr95, rate
from softkin_training.evaluate import evaluate, write_report
from softkin_training.expose import EMBEDDING
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import FitConfig
from softkin_training.fitted_baselines import RelativeMahalanobis, summed_distances
from softkin_training.onnx_graphs import rename
from softkin_training.subject import Subject

pytestmark = pytest.mark.training


def test_baselines_see_the_banks_rows(tiny):
    """K-th neighbour and DkNN from the representations of the bank rows, computed afresh."""
    subject = Subject(bundles.read_bundle(tiny.path))
    bank = Network(tiny.path / "model.onnx").run(tiny.bank.x)
    z = {k: subject.run(x) for k, x in (("i", tiny.inliers), ("o", tiny.outliers), ("c", tiny.calibration.x))}

    report = evaluate(
        tiny.path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, calibration=tiny.calibration
    )
    last = bank["representation.narrow"]
    kth = [baselines.kth_neighbor(z[k].z["narrow"], last) for k in "io"]
    assert report.scores["kth_neighbor"].outliers["far"].auroc == pytest.approx(auroc(*kth))

    layers = {n: bank[f"representation.{n}"] for n in ("wide", "narrow")}
    counts = {k: baselines.dknn_nonconformity(p.z, layers, tiny.bank.y, 3) for k, p in z.items()}
    true = np.take_along_axis(counts["c"], tiny.calibration.y[:, None], axis=1)[:, 0]
    credibility = {k: conformal.credibility(conformal.p_values(counts[k], np.sort(true))) for k in "io"}
    dknn = report.scores["dknn"]
    assert dknn.false_alarms == rate(credibility["i"] <= 0.05)
    assert dknn.outliers["far"].fpr95 == fpr95(1 - credibility["i"], 1 - credibility["o"])


def test_a_bank_of_prototypes_leaves_out_what_counts_or_fits_rows(tiny, tmp_path):
    """They are too few, and not all of equal weight."""
    spec = dataclasses.replace(tiny.spec, condense=5.0)
    path = tmp_path / "bundle"
    build(path, tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    found = evaluate(path, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers})
    assert not {"kth_neighbor", "kth_neighbor_all", "dknn", "mahalanobis", "vim"} & found.scores.keys()
    assert any("prototypes" in note for note in found.notes)


def test_probabilities_have_no_energy(tiny, tmp_path):
    """Theirs is 0 but for rounding: an AUROC would be that of noise."""
    model = onnx.load_from_string(tiny.model)
    rename(model.graph, {"logits": "raw"})
    model.graph.node.append(onnx.helper.make_node("LogSoftmax", ["raw"], ["logits"], axis=1))
    next(o for o in model.graph.output if o.name == "raw").name = "logits"
    serialized, rows = model.SerializeToString(), {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(tmp_path / "bundle", serialized, tiny.spec, **rows)

    found, plain = (
        evaluate(p, inliers=tiny.inliers, labels=None, outliers={"far": tiny.outliers}, calibration=tiny.calibration)
        for p in (tmp_path / "bundle", tiny.path)
    )
    left_out = {"energy", "max_logit", "joint_energy_density"}
    assert plain.scores.keys() - found.scores.keys() >= left_out
    assert {"gen", "max_softmax"} <= found.scores.keys()
    assert [note for note in found.notes if note.startswith("Energy and max logit are left out")]


def test_bare_embeddings_have_no_scores_of_logits(tiny, tmp_path):
    """The class of smallest nonconformity stands for the prediction; there are no probabilities to calibrate."""
    model = onnx.load_from_string(tiny.model)
    del model.graph.node[0]
    del model.graph.output[0]
    path = tmp_path / "bundle"
    build(path, model.SerializeToString(), tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    found = evaluate(
        path,
        inliers=tiny.inliers,
        labels=np.arange(len(tiny.inliers)) % 3,
        outliers={"far": tiny.outliers},
        calibration=tiny.calibration,
    )
    assert not {"energy", "max_logit", "gen", "max_softmax", "vim", "joint_energy_density"} & found.scores.keys()
    assert found.accuracy > 0.9
    assert found.classifier is None
    assert [note for note in found.notes if "left out" in note] == [
        "Bare embeddings have no logits: scores made of logits are left out."
    ]
    assert len(found.credibility) == 10
    assert not found.has_logits
    write_report(found, tmp_path / "out")
    page, text = ((tmp_path / "out" / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    told = re.sub(r"<dl class=\"glossary\">.*?</dl>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.findall("(?i).*(?:classifier|network).*", told + text)
    assert "of the least strange class, on inliers" in told
    assert "a row's class is the one as a member of which it is least strange" in told
    assert "the same vectors, bank and rows" in told
    assert "the same vectors, bank and rows" in text


def test_of_two_classes_everything_is_compared(tiny, tmp_path):
    """The fewest that a classifier tells apart."""
    bank, calibration = (rows.take(np.flatnonzero(rows.y < 2)) for rows in (tiny.bank, tiny.calibration))
    model = onnx.load_from_string(tiny.model)
    [w] = [t for t in model.graph.initializer if t.name == "w"]
    w.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(w)[:, :2].copy(), "w"))
    next(o for o in model.graph.output if o.name == "logits").type.tensor_type.shape.dim[1].dim_value = 2
    spec = dataclasses.replace(tiny.spec, classes=("a", "b"))
    build(tmp_path / "two", model.SerializeToString(), spec, bank_rows=bank, calibration_rows=calibration)

    names = []
    for path, rows in ((tmp_path / "two", calibration), (tiny.path, tiny.calibration)):
        subject = Subject(bundles.read_bundle(path))
        names.append(list(compared_scores(subject, subject.run(rows.x), rows.y, 0)[0]))

    assert names[0] == names[1]


def test_of_one_class_nothing_is_compared_that_compares_classes(tmp_path):
    """Each of these would be the same number for every row, and look like a score that fails."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "vectors.npz", x_train=rng.normal(size=(200, 4)).astype(np.float32))
    fit_embeddings(tmp_path / "vectors.npz", tmp_path, FitConfig(name="v", layers=[EMBEDDING]))
    inliers, more = rng.normal(size=(2, 50, 4)).astype(np.float32)

    path, outliers = tmp_path / "bundle", {"far": inliers + 5}
    found = evaluate(path, inliers=inliers, labels=None, outliers=outliers, calibration=more)

    assert list(found.scores) == ["softkin", "kth_neighbor", "mahalanobis"]
    assert "The detector has one class: scores that compare classes are left out." in found.notes


def test_joint_scores_without_logits_are_those_that_need_none(tiny, tmp_path):
    """And none repeats the bundle's own."""
    model = onnx.load_from_string(tiny.model)
    del model.graph.node[0]
    del model.graph.output[0]
    for i, (form, parts) in enumerate((("density", ()), ("joint", ("density_last", "density", "posterior")))):
        spec = dataclasses.replace(tiny.spec, nonconformity=form, parts=parts)
        path = tmp_path / str(i)
        build(path, model.SerializeToString(), spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
        subject = Subject(bundles.read_bundle(path))
        scores, _ = compared_scores(subject, subject.run(tiny.calibration.x), None, 0)

        joint = {name: s.title for name, s in scores.items() if name.startswith("joint")}
        title = "joint: posterior + density + density last"
        assert joint == ({"joint_posterior_density_density_last": title} if form == "density" else {})


def test_some_calibration_rows_are_fitted_to_and_the_others_calibrate(tiny):
    """Half, by the seed, the same for all such scores; ReAct's limit is a quantile of those rows alone."""
    subject = Subject(bundles.read_bundle(tiny.path))
    calibration = subject.run(tiny.calibration.x)
    scores, again, other = (compared_scores(subject, calibration, None, seed)[0] for seed in (7, 7, 8))

    fitted = ~scores["react"].calibrates
    assert (len(fitted), fitted.sum()) == (600, 300)
    for name in ("joint_energy_density", "joint_class_density_boundary_distance", "fdbd"):
        assert (~scores[name].calibrates == fitted).all()
    assert (again["react"].calibrates == scores["react"].calibrates).all()
    assert (other["react"].calibrates != scores["react"].calibrates).any()
    assert {name for name, s in scores.items() if s.calibrates is None} == scores.keys() - {
        "joint_energy_density",
        "joint_class_density_boundary_distance",
        "fdbd",
        "react",
    }
    head, x = subject.head, tiny.outliers * np.float32(3)
    clip = np.quantile(tiny.calibration.x[fitted], 0.9)
    expected = mass.energy(np.minimum(x, clip) @ head.weight.T + head.bias)
    np.testing.assert_allclose(scores["react"].score(subject.run(x)), expected, rtol=1e-5)


def test_without_calibration_rows_what_is_fitted_to_them_is_left_out_and_told(tiny):
    """The rest stays: it needs the bank alone."""
    scores, notes = compared_scores(Subject(bundles.read_bundle(tiny.path)), None, None, 0)

    assert not {"joint_energy_density", "joint_class_density_boundary_distance", "react", "fdbd"} & scores.keys()
    assert {"vim", "mahalanobis", "dknn", "energy"} <= scores.keys()
    [note] = [note for note in notes if "Without calibration rows" in note]
    assert "joint scores, ReAct and fDBD, which are fitted to such rows, are left out" in note
    assert note.endswith("Give the rows with --calibration FILE.")


@pytest.mark.parametrize(("rows", "enough"), [(2, False), (3, True)])
def test_the_fewest_calibration_rows_for_a_joint_score_are_those_that_are_told(tiny, rows, enough):
    """Two to fit to, and the note names the number that would do."""
    subject = Subject(bundles.read_bundle(tiny.path))

    scores, notes = compared_scores(subject, subject.run(tiny.calibration.x[:rows]), None, 0)

    assert ({"joint_energy_density", "react"} <= scores.keys()) == enough
    assert any("2 calibration rows are too few" in note and "need 3" in note for note in notes) == (not enough)


@pytest.mark.parametrize(("layers", "compared"), [(1, False), (2, True)])
def test_no_fusion_counts_a_part_twice(tiny, tmp_path, layers, compared):
    """In a single layer density and density of the last layer are one; two layers have both."""
    kept = dataclasses.replace(tiny.spec, layers=tiny.spec.layers[-layers:], nonconformity="density", parts=())
    build(tmp_path / "one", tiny.model, kept, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    subject = Subject(bundles.read_bundle(tmp_path / "one"))

    scores, _ = compared_scores(subject, subject.run(tiny.calibration.x), None, 0)

    assert ("joint_posterior_density_density_last" in scores) is compared
    assert {"joint_energy_density", "joint_class_density_boundary_distance"} <= scores.keys()


def test_bare_vectors_of_one_layer_miss_no_fusion_without_calibration_rows(tmp_path):
    """There is none to be had, so neither their absence nor too few rows are a reason to tell."""
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    np.savez(tmp_path / "v.npz", x_train=x, y_train=np.arange(300) % 2)
    fit_embeddings(tmp_path / "v.npz", tmp_path, FitConfig(name="v", layers=[EMBEDDING]))
    subject = Subject(bundles.read_bundle(tmp_path / "bundle"))

    without, few = (compared_scores(subject, rows, None, 0) for rows in (None, subject.run(x[:2])))

    assert not any("joint" in name for name in {**without[0], **few[0]})
    of_logits = "Bare embeddings have no logits: scores made of logits are left out."
    told = "Without calibration rows no score but the bundle's own has false alarms and caught. "
    assert without[1] == [told + "Give the rows with --calibration FILE.", of_logits]
    assert few[1] == [of_logits]


def test_parts_are_told_by_their_names_and_are_what_their_names_say(tiny):
    """Of the last layer by its name."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)
    seen = subject.run(tiny.outliers)

    titles = {name: scores[name].title for name in ("posterior", "posterior_hidden", "density", "density_last")}
    assert list(titles.values()) == ["posterior", "posterior hidden", "density", "density, narrow"]
    for name in titles:
        expected = subject.nonconformity().part_score(name, seen.outputs)
        np.testing.assert_array_equal(scores[name].score(seen), expected)


def test_joint_scores_put_their_parts_on_the_scale_of_the_reference_rows(tiny):
    """Those that do not calibrate them; at the class that the network predicts."""
    subject = Subject(bundles.read_bundle(tiny.path))
    calibration, seen = subject.run(tiny.calibration.x), subject.run(tiny.outliers)
    scores, _ = compared_scores(subject, calibration, None, 0)
    joint, parts = scores["joint_energy_density"], ("energy", "density")

    fitted = calibration.outputs.take(~joint.calibrates)
    form = subject.nonconformity(parts, fit_references(subject.nonconformity(), parts, fitted))
    expected = outlier_score(form(seen.outputs), seen.logits.argmax(axis=1))

    assert set(subject.detector.manifest.parts) == {"posterior", "density", "density_last"}  # so that is no other score
    assert joint.title == "joint: energy + density"
    np.testing.assert_allclose(joint.score(seen), expected)


def test_boundaries_are_fused_as_a_bundle_with_that_part_fuses_them(tiny, tmp_path):
    """So a report shows of any classifier what the part would be worth; the one fits its mean to other rows."""
    parts = ("class_density", "boundary_distance")
    subject = Subject(bundles.read_bundle(tiny.path))
    calibration, seen = subject.run(tiny.calibration.x), subject.run(tiny.outliers)
    found = compared_scores(subject, calibration, None, 0)[0]["joint_class_density_boundary_distance"]
    spec = dataclasses.replace(tiny.spec, parts=parts)
    build(tmp_path / "b", tiny.model, spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    own = Subject(bundles.read_bundle(tmp_path / "b"))
    at_reference = own.run(tiny.calibration.x).outputs.take(~found.calibrates)
    form = own.nonconformity(parts, fit_references(own.nonconformity(), parts, at_reference))

    outputs = own.run(tiny.outliers).outputs
    expected = outlier_score(form(outputs), outputs.logits.argmax(axis=1))

    np.testing.assert_allclose(found.score(seen), expected, rtol=0.1)
    assert "joint_class_density_boundary_distance" not in compared_scores(own, own.run(tiny.calibration.x), None, 0)[0]


def test_what_counts_neighbors_and_what_fits_gaussians_sees_the_layers_it_names(tiny):
    """All layers in units of their own typical distance: the median one of a row to its k-th nearest other row."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)
    seen = subject.run(tiny.outliers)

    typical = [np.median(baselines.kth_neighbor(z, z, baselines.KTH + 1)) for z in subject.neighbors.values()]
    each = np.stack([baselines.kth_neighbor(seen.z[n], z) for n, z in subject.neighbors.items()])
    gaussians = RelativeMahalanobis.fit(subject.neighbors["narrow"], subject.labels)
    expected = {
        "kth_neighbor": each[-1],
        "kth_neighbor_all": summed_distances(each, np.array(typical)),
        "dknn": seen.dknn_nonconformity().min(axis=1),
        "mahalanobis": gaussians.classes.score(seen.z["narrow"]),
        "relative_mahalanobis": gaussians.score(seen.z["narrow"]),
        "max_logit": baselines.max_logit(seen.logits),
        "gen": baselines.gen(seen.logits),
        "max_softmax": baselines.max_softmax(seen.logits),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name].score(seen), values, rtol=1e-5, err_msg=name)
    assert (scores["dknn"].p_values, list(subject.neighbors)) == ("none", ["wide", "narrow"])


@pytest.mark.parametrize(("most", "step"), [(70, 5), (160, 2), (300, 1)])
def test_the_typical_distance_of_a_large_bank_is_measured_on_rows_from_all_over_it(tiny, monkeypatch, most, step):
    """At most so many of 300, evenly spread: the first 160 would lack the last of three classes."""
    monkeypatch.setattr("softkin_training.compared_scores.TYPICAL_ROWS", most)
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, _ = compared_scores(subject, None, None, 0)
    seen = subject.run(tiny.outliers)

    expected = 0.0
    for name, z in subject.neighbors.items():
        some = z[list(range(0, 300, step))]
        expected = expected + seen.kth(name) / np.median(baselines.kth_neighbor(some, z, 51))
    np.testing.assert_allclose(scores["kth_neighbor_all"].score(seen), expected, rtol=1e-5)


def test_rows_of_a_layer_that_compares_lengths_keep_theirs(tmp_path):
    """Published code takes features as they are: of unit length, Mahalanobis is another score."""
    x = np.random.default_rng(0).normal(size=(300, 4)) + 3 * np.arange(300)[:, None] % 2
    np.savez(tmp_path / "v.npz", x_train=x, y_train=np.arange(300) % 2)
    for metric, rows in (("cosine", "the bank's rows of unit length"), ("squared_euclidean", "the bank's rows")):
        config = FitConfig(name="v", layers=[EMBEDDING], metric=metric)
        fit_embeddings(tmp_path / "v.npz", tmp_path, config)

        scores, _ = compared_scores(Subject(bundles.read_bundle(tmp_path / "bundle")), None, None, 0)

        assert scores["mahalanobis"].source == f"Lee et al. 2018, on {rows}"


def test_every_score_tells_where_it_comes_from(tiny):
    """And, where it sees one layer, which; and what is left out is told."""
    subject = Subject(bundles.read_bundle(tiny.path))
    scores, notes = compared_scores(subject, subject.run(tiny.calibration.x), tiny.calibration.y, 0)

    assert notes == ["SCALE is left out: it takes features that a ReLU has passed, and these are negative in part."]
    ours = "softkin, same bank"
    assert {name: (s.title, s.source) for name, s in scores.items()} == {
        "posterior": ("posterior", ours),
        "posterior_hidden": ("posterior hidden", ours),
        "density": ("density", ours),
        "density_last": ("density, narrow", ours),
        "joint_energy_density": ("joint: energy + density", ours),
        "joint_class_density_boundary_distance": ("joint: class density + boundary distance", ours),
        "kth_neighbor": ("k-th neighbour distance, narrow", "Sun et al. 2022"),
        "kth_neighbor_all": ("k-th neighbour distance, all layers", "Sun et al. 2022, summed over layers"),
        "dknn": ("DkNN credibility", "Papernot & McDaniel 2018"),
        "mahalanobis": ("Mahalanobis, narrow", "Lee et al. 2018, on the bank's rows of unit length"),
        "relative_mahalanobis": ("relative Mahalanobis, narrow", "Ren et al. 2021, on the bank's rows of unit length"),
        "vim": ("ViM", "Wang et al. 2022"),
        "fdbd": ("fDBD", "Liu & Qin 2024"),
        "react": ("ReAct", "Sun, Guo & Li 2021"),
        "energy": ("energy", "Liu et al. 2020"),
        "max_logit": ("max logit", "Hendrycks et al. 2022"),
        "gen": ("GEN", "Liu et al. 2023"),
        "max_softmax": ("max softmax", "Hendrycks & Gimpel 2017"),
    }
    assert {name: s.p_values for name, s in scores.items() if s.p_values != "conformal"} == {"dknn": "complement"}


@pytest.mark.parametrize(("layer", "title"), [("5", "layer 5"), ("2.conv1", "layer 2.conv1"), ("layer4", "layer4")])
def test_layers_that_are_numbered_are_called_layers(tiny, tmp_path, layer, title):
    """As torch numbers those of a Sequential: `k-th neighbour distance, 5` would read as the k."""
    model = onnx.load_from_string(tiny.model)
    rename(model.graph, {"representation.narrow": f"representation.{layer}"})
    layers = tuple(dataclasses.replace(x, name=layer) if x.name == "narrow" else x for x in tiny.spec.layers)
    spec = dataclasses.replace(tiny.spec, layers=layers)
    build(tmp_path / "b", model.SerializeToString(), spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    scores, _ = compared_scores(Subject(bundles.read_bundle(tmp_path / "b")), None, None, 0)

    titles = [s.title for s in scores.values() if ", " in s.title and "all layers" not in s.title]
    names = ("density", "k-th neighbour distance", "Mahalanobis", "relative Mahalanobis")
    assert titles == [f"{name}, {title}" for name in names]


def test_a_bank_of_fewer_rows_than_neighbours_is_asked_for_all_of_them(tiny, tmp_path):
    """The k-th nearest is then the farthest, and every row votes in every layer."""
    path = tmp_path / "bundle"
    build(path, tiny.model, tiny.spec, bank_rows=tiny.bank.take(np.arange(20)), calibration_rows=tiny.calibration)
    subject = Subject(bundles.read_bundle(path))
    scores, _ = compared_scores(subject, None, None, 0)
    seen = subject.run(tiny.outliers)

    z = seen.z["narrow"]
    farthest = [max(np.linalg.norm(row - other) for other in subject.neighbors["narrow"]) for row in z]
    np.testing.assert_allclose(scores["kth_neighbor"].score(seen), farthest, rtol=1e-4)
    fewest_others = min(2 * (tiny.bank.y[:20] != j).sum() for j in range(3))
    np.testing.assert_array_equal(scores["dknn"].score(seen), fewest_others)
