"""The whole of `softkin-train run`, on embedded data, and its steps one by one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binom

from softkin import Detector, conformal
from softkin.bundle import read_bundle
from softkin.errors import RecipeError, SoftkinError
from softkin_training.cli import main
from softkin_training.config import load_recipe
from softkin_training.data import load_dataset
from softkin_training.row_contents import fingerprint, row_digests
from softkin_training.run import build_step, evaluate_step
from softkin_training.split import choose_bank_rows

pytestmark = pytest.mark.training

SHORT = ["--set", "training.epochs=8", "--set", "training.probe_rows=64"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """DIR of a short run of the digits recipe."""
    path = tmp_path_factory.mktemp("run")
    assert main(["run", "digits", "--out", str(path), "--quiet", *SHORT]) == 0
    return path


@pytest.fixture(scope="module")
def dataset():
    """The digits recipe's rows."""
    return load_dataset(load_recipe("digits"))


def test_a_run_yields_a_working_bundle_and_a_report(out, dataset):
    """Known digits pass at about alpha, photo patches do not; the report says the same."""
    detector = Detector.load(out / "bundle")
    false_alarms = detector.score(dataset.test.x).is_outlier.mean()
    caught = detector.score(dataset.outliers["photo patches"]).is_outlier.mean()

    assert false_alarms < 0.1
    assert caught > 0.9
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["scores"]["softkin"]["false_alarms"]["value"] == false_alarms
    assert report["scores"]["softkin"]["outliers"]["photo patches"]["caught"]["value"] == caught
    assert report["accuracy"] > 0.9
    assert report["near"] == ["unknown digits"]
    assert len(report["corruptions"]["levels"]) == 4 * 6
    assert (out / "report" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_no_calibration_row_was_trained_on_or_stands_in_the_bank(out, dataset):
    """By content, and the manifest's fingerprints are those of the rows."""
    bundle = read_bundle(out / "bundle")
    known = set(row_digests(dataset.train.x)) | set(row_digests(dataset.test.x))

    assert not known & set(row_digests(dataset.calibration.x))
    assert not set(bundle.bank.ids[bundle.bank.ids >= 0]) & set(dataset.calibration.ids)
    found = bundle.manifest.provenance["fingerprints"]
    assert found["train"] == fingerprint(dataset.train.x)
    assert found["calibration"] == fingerprint(dataset.calibration.x)
    assert bundle.manifest.provenance["recipe"]["training"]["epochs"] == 8


def test_the_steps_one_by_one_give_the_same_bundle(out, tmp_path, capsys):
    """train, export, build: equal files, as the seed promises."""
    for step in ("train", "export", "build"):
        extra = ["--quiet"] if step == "train" else []
        assert main([step, "digits", "--out", str(tmp_path), *SHORT, *extra]) == 0

    a, b = read_bundle(out / "bundle").manifest, read_bundle(tmp_path / "bundle").manifest
    assert a.files == b.files
    assert "test accuracy" in capsys.readouterr().out


def test_evaluate_and_entanglement_read_files(out, dataset, tmp_path, capsys):
    """The commands for a bundle that exists already."""
    np.savez(tmp_path / "in.npz", x_test=dataset.test.x, y_test=dataset.test.y)
    np.savez(tmp_path / "noise.npz", x_test=dataset.outliers["noise"])

    arguments = ["--inliers", str(tmp_path / "in.npz"), "--outliers", f"noise={tmp_path / 'noise.npz'}"]
    assert main(["evaluate", str(out / "bundle"), *arguments, "--out", str(tmp_path / "report")]) == 0
    assert json.loads((tmp_path / "report" / "report.json").read_text())["scores"]["softkin"]["mean_auroc"] > 0.9

    capsys.readouterr()
    assert main(["entanglement", str(out / "bundle"), "--data", str(tmp_path / "in.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["conv1", "conv2", "dense"]
    assert all(0 <= float(line.split()[3]) <= 1 for line in lines[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["run", "nope", "--out", "x"], "nope: no such recipe; give a TOML file or one of", id="recipe"),
        pytest.param(["run", "mnist", "--out", "x"], "data.path is empty", id="no data"),
        pytest.param(
            ["export", "digits", "--out", "x"], "checkpoint.pt does not exist; run the train step", id="order"
        ),
        pytest.param(["build", "digits", "--out", "x"], "model.onnx (No such file", id="no model"),
        pytest.param(["train", "digits", "--out", "/dev/null/x"], "cannot write to /dev/null/x", id="unwritable"),
    ],
)
def test_mistakes_end_with_one_clear_line(arguments, message, capsys, tmp_path, monkeypatch):
    """Exit status 1, no traceback."""
    monkeypatch.chdir(tmp_path)

    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("softkin-train: error: ")
    assert message in error
    assert "Traceback" not in error


def test_bank_rows_keep_every_class_at_its_share(dataset):
    """A sample of the training rows, no row twice."""
    rows = choose_bank_rows(dataset.train, 200, seed=0)

    assert abs(len(rows) - 200) <= 8
    assert len(set(rows.ids)) == len(rows)
    share = np.bincount(dataset.train.y) / len(dataset.train)
    assert np.abs(np.bincount(rows.y) / len(rows) - share).max() < 0.01
    assert len(choose_bank_rows(dataset.train, 10**6, seed=0)) == len(dataset.train)


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.25])
def test_false_alarms_match_alpha_over_repeated_splits_of_real_scores(out, dataset, alpha):
    """Rows no training step saw, split at random into 199 to calibrate and 1 to test, 4,000 times.

    Given the pool, splits are independent and each flags its test row with probability floor(alpha 200) / 200 exactly
    (scores do not tie), so the count is binomial. Level 1e-4 per alpha.
    """
    x = np.concatenate([dataset.calibration.x, dataset.test.x])
    pool = Detector.load(out / "bundle").score(x).outlier_score
    assert len(np.unique(pool)) == len(pool)
    rng = np.random.default_rng(0)

    count = 0
    for _ in range(4000):
        drawn = pool[rng.permutation(len(pool))[:200]]
        count += int(conformal.p_values(drawn[:1], np.sort(drawn[1:]))[0] <= alpha)

    low, high = binom.interval(1 - 1e-4, 4000, alpha)
    assert low <= count <= high


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.epochs=9"], "was exported by another recipe: training.epochs: 8 -> 9; undo that, or export"),
        (
            ["training.epochs=8", "detector.metric=squared_euclidean"],
            "detector.metric: 'cosine' -> 'squared_euclidean'",
        ),
        (["training.epochs=8", "detector.max_dim=7"], "detector.max_dim: .* -> 7"),
    ],
    ids=["epochs", "metric", "width"],
)
def test_a_model_that_another_recipe_left_is_not_built_upon(out, dataset, tmp_path, overrides, words):
    """The bundle would not be what its manifest says."""
    (tmp_path / "model.onnx").write_bytes((out / "model.onnx").read_bytes())
    fewer = dataclasses.replace(dataset, train=dataset.train.take(np.arange(700)))

    with pytest.raises(RecipeError, match=words):
        build_step(load_recipe("digits", overrides), dataset, tmp_path)
    with pytest.raises(RecipeError, match="was exported from training on other rows"):
        build_step(load_recipe("digits", ["training.epochs=8"]), fewer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_where_training_ran_does_not_make_another_model(out, dataset, tmp_path):
    """A model trained on one machine is built upon on another, which has other devices."""
    (tmp_path / "model.onnx").write_bytes((out / "model.onnx").read_bytes())
    elsewhere = ["accelerator=cuda", "devices=2", "cpu_threads=1", "cuda_graph=false", "checkpoint_every_epochs=3"]
    recipe = load_recipe("digits", ["training.epochs=8", *(f"training.{setting}" for setting in elsewhere)])

    assert build_step(recipe, dataset, tmp_path).files == read_bundle(out / "bundle").manifest.files


def test_every_setting_of_the_detector_reaches_the_bundle(out, dataset, tmp_path):
    """Each other than its default; temperatures are in proportion to their scale, of the same rows."""
    (tmp_path / "model.onnx").write_bytes((out / "model.onnx").read_bytes())
    settings = {"training.epochs": 8, "name": "other", "version": "7"}
    detector = {"alpha": 0.2, "bank_rows": 500, "whiten": True, "precision": "float16", "max_p_value_change": 0.5}
    form = {"nonconformity": "joint", "joint_parts": ["density", "energy"]}
    settings |= {f"detector.{k}": v for k, v in (detector | form).items()}

    def built(scale):
        overrides = [f"{k}={json.dumps(v)}" for k, v in (settings | {"detector.temperature_scale": scale}).items()]
        return build_step(load_recipe("digits", overrides), dataset, tmp_path)

    m, wider = built(0.25), built(0.5)

    assert (m.name, m.version, m.default_alpha, m.bank_size) == ("other", "7", 0.2, 500)
    assert (m.bank_precision, m.approximation.budget) == ("float16", 0.5)
    assert (m.nonconformity, m.parts) == ("joint", ("density", "energy"))
    assert all("whitening" in layer.reducer for layer in m.layers)
    for layer, other in zip(m.layers, wider.layers, strict=True):
        assert other.temperature == pytest.approx(2 * layer.temperature)


def test_a_model_that_is_none_is_refused(dataset, tmp_path):
    """In our words, with nothing half-written."""
    (tmp_path / "model.onnx").write_bytes(b"no model")

    with pytest.raises(SoftkinError, match=r"model\.onnx"):
        build_step(load_recipe("digits"), dataset, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_condensed_bank_in_int8_is_built_reported_and_evaluated(out, dataset, tmp_path, capsys):
    """From the exported model of a run; the report leaves out what counts neighbours."""
    (tmp_path / "model.onnx").write_bytes((out / "model.onnx").read_bytes())
    options = ["--set", "training.epochs=8", "--set", "detector.condense=4", "--set", "detector.precision=int8"]

    assert main(["build", "digits", "--out", str(tmp_path), *options]) == 0

    assert "prototypes of 893 rows in int8; against all rows in float32, p-values change by" in capsys.readouterr().out
    m = read_bundle(tmp_path / "bundle").manifest
    assert (m.bank_precision, m.condensed_from) == ("int8", 893)
    assert m.approximation.auroc_changes.keys() == dataset.outliers.keys()
    report = evaluate_step(dataset, tmp_path)
    assert {"posterior", "energy"} <= report.scores.keys()
    assert not {"kth_neighbor", "dknn"} & report.scores.keys()
    exact = json.loads((out / "report" / "report.json").read_text())["scores"]["softkin"]["mean_auroc"]
    assert report.scores["softkin"].mean_auroc > exact - 0.02
