"""A bundle from an ONNX classifier or from vectors, without training. Needs neither torch nor scikit-learn."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper
from scipy.stats import binom

from foreign_models import CLASSES, SHAPE, body, classifier, tensor, weights
from softkin import Detector
from softkin.bundle import read_bundle
from softkin.certificate import false_alarm_bound
from softkin.conformal import rank
from softkin.export_onnx import export_onnx
from softkin_training.cli import main
from softkin_training.config import DetectorConfig
from softkin_training.fit import fit_embeddings
from softkin_training.fit_config import default_name, fit_config
from softkin_training.onnx_graphs import rename
from softkin_training.row_contents import digests64, fingerprint
from softkin_training.rows import Rows
from softkin_training.split import choose_bank_rows, first_of_each, split

LEVEL = 1e-4
"""Chance that a correct implementation fails a statistical test."""
SOFTMAX = helper.make_node("Softmax", ["scores"], ["p"], axis=1)


def sample(n, seed, *, labelled_by_model=True):
    """Rows around one centre per class, as `x`, `y`; the classifier of `foreign_models` need not agree."""
    rng = np.random.default_rng(seed)
    centers = 3 * np.random.default_rng(99).normal(size=(CLASSES, *SHAPE))
    y = rng.integers(0, CLASSES, n)
    return (centers[y] + 0.5 * rng.normal(size=(n, *SHAPE))).astype(np.float32), y


def good_classifier(nodes=(), outputs=("scores",), **options):
    """The classifier of `foreign_models` with an output layer that fits `sample`."""
    x, y = sample(800, 50)
    hidden = np.maximum(x.reshape(len(x), -1) @ weights()["w1"], 0)
    w = np.linalg.lstsq(hidden, np.eye(CLASSES)[y], rcond=None)[0]
    start = body()
    start[-1].input[1] = "fitted"
    return classifier(nodes, outputs, start=start, initializers=[tensor(5 * w, "fitted")], **options)


@pytest.fixture
def files(tmp_path):
    """Model, data and calibration as files."""
    onnx.save(good_classifier(), tmp_path / "my model.onnx")
    x, y = sample(400, 1)
    np.savez(tmp_path / "train.npz", x_train=x, y_train=y)
    x, y = sample(200, 2)
    np.savez(tmp_path / "calibration.npz", x_test=x, y_test=y)
    return tmp_path


def fit(files, *arguments, model="my model.onnx", layers="hidden,before", data="train.npz"):
    """Exit status of the command on `files`."""
    options = ["--onnx", str(files / model), "--layers", layers, "--data", str(files / data)]
    return main(["fit", *options, "--out", str(files / "out"), *map(str, arguments)])


def test_a_classifier_becomes_a_bundle_that_keeps_its_promise(files, capsys):
    """False alarms on fresh inliers are binomial about at most 5 %; what is far off is caught; every choice is told."""
    assert fit(files, "--calibration", files / "calibration.npz") == 0

    detector = Detector.load(files / "out" / "bundle", device="cpu")
    alarms = detector.score(sample(1000, 3)[0]).is_outlier.sum()
    # The calibration set is drawn too: its bound at 1 - LEVEL/2, and then the alarms given that.
    worst = false_alarm_bound(rank(0.05, 100), 100, 1 - LEVEL / 2)
    assert binom.sf(alarms - 1, 1000, worst) > LEVEL / 2
    far = (30 * np.random.default_rng(4).normal(size=(200, *SHAPE))).astype(np.float32)
    assert detector.score(far).is_outlier.mean() > 0.8
    text = capsys.readouterr().out
    lines = [
        r"layer:       hidden, 5 numbers, reducer none",
        r"layer:       before, 5 numbers, reducer none",
        r"output:      scores, 4 logits",
        r"classes:     c0, c1, c2, c3",
        r"bank:        400 rows in float32",
        r"score:       joint: density, class_density, energy",
        r"calibration: 100 rows from .*calibration\.npz, less the half that the joint form sets aside; the "
        r"classifier's accuracy on them is \d\d\.\d%",
        r".*out/bundle: my-model 1, 100 calibration rows; at alpha 0\.05 false alarms are at most 0\.0\d+ at "
        r"confidence 0\.95",
        r"next:        softkin-train evaluate \S+/out/bundle --inliers FILE --outliers NAME=FILE --calibration "
        r"\S+/calibration\.npz --out DIR",
        r"             compares this score with others of the same network, such as max logit, on rows of yours: .*",
    ]
    assert re.fullmatch("\n".join(lines) + "\n", text), text


def test_labels_that_the_classifier_never_gets_right_are_remarked_upon(files, capsys):
    """Labels at random, or rows in another scale, leave p-values valid and detection poor."""
    x, _ = sample(200, 2)
    np.savez(files / "random.npz", x_test=x, y_test=np.random.default_rng(0).integers(0, CLASSES, 200) % 3)

    assert fit(files, "--calibration", files / "random.npz") == 0

    text = capsys.readouterr().out
    assert re.search(r"accuracy on them is [123]\d\.\d%\n +always naming the largest class would reach", text), text


def test_calibration_rows_of_one_class_are_no_ground_for_that_remark(files, capsys):
    """All of them are the largest class."""
    x, y = sample(400, 2)
    np.savez(files / "one.npz", x_test=x[y == 2], y_test=y[y == 2])

    assert fit(files, "--calibration", files / "one.npz") == 0
    assert "largest class" not in capsys.readouterr().out


def test_a_name_with_a_comma_can_be_given(files, capsys):
    """Commas separate names; exporters put them into names too."""
    proto = good_classifier()
    rename(proto.graph, {"hidden": "relu(a, b)"})
    onnx.save(proto, files / "comma.onnx")

    assert fit(files, model="comma.onnx", layers=r"before , relu(a\, b)") == 0
    assert fit(files, model="comma.onnx", layers="before,relu(a, b)") == 1

    captured = capsys.readouterr()
    assert "layer:       before, 5 numbers, reducer none\nlayer:       relu(a, b), 5 numbers" in captured.out
    assert "got 'relu(a', which is no tensor or node of the model" in captured.err


def test_names_of_the_model_are_spelled_out(files, capsys):
    """They come from somebody else's file, and could clear a terminal."""
    proto = good_classifier()
    rename(proto.graph, {"hidden": "a\x1b[2J\nb", "scores": "s\r"})
    onnx.save(proto, files / "odd.onnx")

    assert fit(files, model="odd.onnx", layers="act") == 0
    assert fit(files, model="odd.onnx", layers="a\x1b[2J\nb") == 0

    out = capsys.readouterr().out
    assert "output:      s\\r, 4 logits" in out
    assert "layer:       a\\x1b[2J\\nb, 5 numbers" in out


def test_the_bundle_says_what_it_was_made_from(files, capsys):
    """Model, tensors, output, its kind and the calibration, in the provenance."""
    onnx.save(good_classifier([SOFTMAX], ["p"]), files / "p.onnx")

    assert fit(files, "--seed", 3, "--version", "2", "--name", "shop", model="p.onnx", layers="act") == 0

    m = read_bundle(files / "out" / "bundle").manifest
    assert (m.name, m.version) == ("shop", "2")
    found = m.provenance["fit"]
    assert found["onnx"] == "p.onnx"
    assert found["layers"] == {"act": "hidden"}
    assert (found["output"], found["output_kind"]) == ("p", "probabilities")
    assert "what the softmax is made of says more: --output scores\n" in capsys.readouterr().out
    assert found["calibration"] == {"share": 0.2}
    assert found["config"]["seed"] == 3
    assert {"softkin", "onnx", "numpy"} <= m.provenance["libraries"].keys()


def test_a_share_calibrates_and_stays_out_of_the_bank(files, capsys):
    """A seeded permutation; repeated rows are left out, and the user is told what the promise rests on."""
    x, y = sample(400, 1)
    np.savez(files / "train.npz", x_train=np.concatenate([x, x[:7]]), y_train=np.concatenate([y, y[:7]]))

    assert fit(files, "--calibration-share", 0.25, "--bank-rows", 100) == 0

    bundle = read_bundle(files / "out" / "bundle")
    assert bundle.manifest.calibration_size == 50
    assert abs(bundle.manifest.bank_size - 100) <= CLASSES
    assert len(bundle.used_rows.seen) == 350  # those that the joint form set aside too
    assert not np.isin(bundle.used_rows.calibration, bundle.used_rows.seen).any()
    assert np.isin(bundle.used_rows.calibration, digests64(x)).all()
    text = capsys.readouterr().out
    assert "; 7 repeated rows left out\n" in text
    assert "calibration: 50 rows (0.25 of x_train), less the half that the joint form sets aside; " in text
    assert "the promise holds if the model was not trained on these rows; else give --calibration FILE\n" in text


def test_the_seed_decides_split_bank_and_projection(files):
    """Equal seeds give equal files, another seed another calibration."""
    found = []
    for seed in (1, 1, 2):
        assert fit(files, "--seed", seed, "--max-dim", 3, "--bank-rows", 200, "--no-whiten") == 0
        found.append(read_bundle(files / "out" / "bundle").manifest)

    assert found[0].files == found[1].files
    assert found[0].files["calibration.safetensors"] != found[2].files["calibration.safetensors"]
    assert [layer.reducer for layer in found[2].layers] == [
        "gaussian-projection(5->3, seed=2)",
        "gaussian-projection(5->3, seed=3)",
    ]


def test_all_options_reach_the_bundle(files, capsys):
    """The joint form with the energy of the logits, in int8, Euclidean, at another rate; it says what it set aside."""
    np.savez(
        files / "train.npz", **dict(zip(("x_train", "y_train"), sample(400, 1), strict=True)), class_names=list("abcd")
    )

    options = {
        "--nonconformity": "joint",
        "--parts": "energy,density",
        "--metric": "squared_euclidean",
        "--alpha": 0.1,
        "--precision": "int8",
        "--max-p-value-change": 0.9,
        "--max-dim": 4,
    }
    assert fit(files, *[a for pair in options.items() for a in pair]) == 0

    m = read_bundle(files / "out" / "bundle").manifest
    assert (m.nonconformity, m.parts, m.default_alpha, m.bank_precision) == (
        "joint",
        ("energy", "density"),
        0.1,
        "int8",
    )
    assert {(layer.metric, layer.dim) for layer in m.layers} == {("squared_euclidean", 4)}
    assert m.classes == ("a", "b", "c", "d")
    assert m.approximation.budget == 0.9
    aside = "calibration: 40 rows (0.2 of x_train), less the half that the joint form sets aside; "
    assert aside in capsys.readouterr().out


def test_whitening_reaches_the_bundle(files):
    """Layers say so behind what reduced them, and the temperature is the one asked for in whitened distances."""
    found = []
    for scale in (0.1, 0.2):
        assert fit(files, "--whiten", "--temperature-scale", scale, "--max-dim", 4) == 0
        found.append(read_bundle(files / "out" / "bundle").manifest)

    assert [layer.reducer for layer in found[0].layers] == [
        "gaussian-projection(5->4, seed=0) + whitening(shrinkage=0.2)",
        "gaussian-projection(5->4, seed=1) + whitening(shrinkage=0.2)",
    ]
    for one, two in zip(found[0].layers, found[1].layers, strict=True):
        assert one.metric == "squared_euclidean"
        assert two.temperature == pytest.approx(2 * one.temperature)


def test_every_layer_may_have_a_metric_of_its_own(files):
    """The bank holds the directions of one and the lengths of the other."""
    assert fit(files, "--metric", "hidden=cosine,before=squared_euclidean", "--no-whiten") == 0

    layers = read_bundle(files / "out" / "bundle").manifest.layers
    assert [(layer.name, layer.metric) for layer in layers] == [("hidden", "cosine"), ("before", "squared_euclidean")]


def test_help_tells_the_recipes_defaults(capsys):
    """The parser does not import the recipes, whose defaults hold: what it says must be theirs."""
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())

    defaults = fit_config(name="x", layers=["a"])
    for name in ("max_dim", "bank_rows", "alpha", "precision", "condense", "seed", "version"):
        option = "--" + name.replace("_", "-")
        assert re.search(rf"{option} [A-Z] .*?\(default: {re.escape(str(getattr(defaults, name)))}", text), option
    for told in (
        "(default: cosine, but for the last of --layers squared_euclidean)",
        "(default: joint; of --embeddings density)",
        "(default: density, class_density and, where the output has one, energy)",
        "(default: yes)",
    ):
        assert told in text
    recipe = DetectorConfig(layers=["a"], bank_rows=1)
    assert defaults.model_dump().items() >= recipe.model_dump(exclude={"bank_rows"}).items()
    assert "give rows the classifier was not trained on" in text


def test_a_second_fit_replaces_the_bundle_and_a_failed_one_does_not(files):
    """As with `run`: the old bundle stays until the new one is complete."""
    assert fit(files) == 0
    before = read_bundle(files / "out" / "bundle").digest

    assert fit(files, "--alpha", 0.001) == 1
    assert read_bundle(files / "out" / "bundle").digest == before
    assert fit(files, "--alpha", 0.1) == 0
    assert read_bundle(files / "out" / "bundle").manifest.default_alpha == 0.1


def test_the_bundle_goes_wherever_others_go(files):
    """It exports as one ONNX model, with a second operator domain in it, and recalibrates without what made it."""
    scaled = good_classifier([SOFTMAX], ["p"], domains=[("ai.onnx.ml", 3)])
    scaled.graph.node[0].input[0] = "scaled"
    scaler = helper.make_node("Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    scaled.graph.node.insert(0, scaler)
    onnx.save(scaled, files / "ml.onnx")
    assert fit(files, model="ml.onnx") == 0

    export_onnx(files / "out" / "bundle", files / "whole.onnx")
    data = ["--data", str(files / "calibration.npz"), "--out", str(files / "next")]
    assert main(["recalibrate", str(files / "out" / "bundle"), *data]) == 0
    x, y = sample(400, 1)
    np.savez(files / "calibration.npz", x_test=x, y_test=y)
    data = ["--data", str(files / "calibration.npz"), "--out", str(files / "third")]
    assert main(["recalibrate", str(files / "out" / "bundle"), *data]) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("labels", [True, False])
def test_vectors_become_a_bundle(tmp_path, capsys, dtype, labels):
    """With labels or without; they are scored in the type they were given in."""
    x, y = sample(400, 1)
    x = x.reshape(len(x), -1).astype(dtype)
    np.savez(tmp_path / "v.npz", x_train=x, **({"y_train": y} if labels else {}))

    assert main(["fit", "--embeddings", str(tmp_path / "v.npz"), "--out", str(tmp_path), "--max-dim", "4"]) == 0

    detector = Detector.load(tmp_path / "bundle", device="cpu")
    fresh = sample(500, 2)[0].reshape(500, -1).astype(dtype)
    far = (10 * np.random.default_rng(5).normal(size=(100, x.shape[1]))).astype(dtype)
    assert detector.score(fresh).is_outlier.mean() < 0.15
    assert detector.score(far).is_outlier.mean() > 0.5
    m = detector.manifest
    assert m.classes == (("c0", "c1", "c2", "c3") if labels else ("all",))
    assert (m.input_dtype, m.input_shape) == (dtype, (6,))
    text = capsys.readouterr().out
    assert "layer:       embedding, 6 numbers, reducer gaussian-projection(6->4, seed=0)\n" in text
    assert "output" not in text
    assert "calibration: 80 rows (0.2 of x_train)\n" in text


def test_unlabelled_vectors_calibrate_from_an_unlabelled_file(tmp_path):
    """Neither file needs labels."""
    np.savez(tmp_path / "v.npz", x_train=sample(200, 1)[0].reshape(200, -1))
    np.savez(tmp_path / "c.npz", x_test=sample(100, 2)[0].reshape(100, -1))

    fitted = fit_embeddings(
        tmp_path / "v.npz", tmp_path, fit_config(name="v", layers=["embedding"]), calibration=tmp_path / "c.npz"
    )

    assert (fitted.manifest.calibration_size, fitted.manifest.bank_size, fitted.accuracy) == (100, 200, None)


def test_neither_torch_nor_scikit_learn_is_imported(files):
    """Nor scipy: what serves can fit too."""
    arguments = ["fit", "--onnx", "my model.onnx", "--layers", "hidden", "--data", "train.npz", "--out", "o"]
    code = (
        f"import sys\nfrom softkin_training.cli import main\nassert main({arguments!r}) == 0\n"
        "print([m for m in ('torch', 'sklearn', 'scipy', 'grpc') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=files, capture_output=True, text=True, check=True)

    assert ast.literal_eval(result.stdout.strip().splitlines()[-1]) in ([], ["grpc"])


def test_the_seed_draws_the_rows_that_calibrate_and_those_of_the_bank(tmp_path):
    """So that another draw can be had, and the same one again; all rows that were not set aside count as seen."""
    x = sample(200, 1)[0].reshape(200, -1)
    np.savez(tmp_path / "v.npz", x_train=x)
    bundles = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = fit_config(name="v", layers=["embedding"], bank_rows=50, seed=seed)
        fit_embeddings(tmp_path / "v.npz", tmp_path / name, config)
        bundles.append(read_bundle(tmp_path / name / "bundle"))

    bank, calibration = split(Rows(x, np.zeros(200, np.int64), np.arange(200)), 0.2, 1)
    for bundle in bundles[:2]:
        np.testing.assert_array_equal(bundle.used_rows.calibration, digests64(calibration))
        assert set(bundle.bank.ids.ravel()) == {-1, *choose_bank_rows(bank, 50, 1).ids}
        assert bundle.manifest.provenance["fingerprints"]["train"] == fingerprint(bank)
    assert (bundles[2].used_rows.calibration != bundles[0].used_rows.calibration).any()


def test_a_split_is_a_permutation_and_a_bank_keeps_the_shares():
    """Every row once; the share is rounded; a rare class keeps a row."""
    y = np.array([0] * 90 + [1] * 10)
    rows = Rows(np.arange(100, dtype=np.float32)[:, None], y, np.arange(100))

    bank, calibration = split(rows, 0.3, seed=1)
    assert (len(bank), len(calibration)) == (70, 30)
    assert sorted([*bank.ids, *calibration.ids]) == list(range(100))
    assert list(split(rows, 0.3, seed=1)[1].ids) == list(calibration.ids) != list(split(rows, 0.3, seed=2)[1].ids)
    assert len(split(rows, 0.29, seed=1)[1]) == 29  # of which 100 times falls short by a rounding error
    assert [len(part) for part in split(rows, 0.01, seed=1)] == [99, 1]
    assert np.bincount(choose_bank_rows(rows, 20, seed=0).y).tolist() == [18, 2]
    chosen = [choose_bank_rows(rows, 20, seed=seed).ids.tolist() for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert np.bincount(choose_bank_rows(rows, 3, seed=0).y).tolist() == [3, 1]
    assert choose_bank_rows(rows, 100, seed=0) is rows
    doubled = rows.take(np.array([5, 3, 5, 9, 3]))
    assert list(first_of_each(doubled).ids) == [5, 3, 9]


@pytest.mark.parametrize(
    ("path", "name"), [("a/My Model.v2.onnx", "My-Model.v2"), ("___.onnx", "detector"), ("x" * 80, "x" * 63)]
)
def test_a_name_comes_from_the_file(path, name):
    """Whatever a file may be called."""
    assert default_name(path) == name
    assert fit_config(name=default_name(path), layers=["a"]).name == name
