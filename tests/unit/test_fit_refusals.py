"""What `softkin-train fit` refuses, in full sentences, and that nothing is written then. Needs no torch."""

from __future__ import annotations

import pickle
import re

import numpy as np
import onnx
import pytest
from onnx import helper

from foreign_models import CLASSES, classifier, rows
from softkin_training.cli import main

SOFTMAX = helper.make_node("Softmax", ["scores"], ["p"], axis=1)
X, Y = rows(200), np.arange(200) % CLASSES
ARRAYS = "uint8, int32, int64, float32, float64"


@pytest.fixture
def folder(tmp_path):
    """A model and an npz that fit."""
    onnx.save(classifier(), tmp_path / "m.onnx")
    onnx.save(classifier([SOFTMAX], ["p"]), tmp_path / "p.onnx")
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y)
    np.savez(tmp_path / "c.npz", x_test=rows(100, seed=2), y_test=Y[:100])
    return tmp_path


def refused(folder, capsys, monkeypatch, arguments, message):
    """Exit status 1 and exactly this message; no bundle, nothing half-written."""
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())

    assert main(["fit", *arguments.split(), "--out", "o"]) == 1

    error = capsys.readouterr().err.removeprefix("softkin-train: error: ").removesuffix("\n")
    assert error == message or re.fullmatch(message, error), error
    assert sorted(folder.iterdir()) == before


ONNX = "--onnx m.onnx --layers hidden --data d.npz"
OPTIONS = {
    "no layers": (
        "--onnx m.onnx --data d.npz",
        "--layers: is missing; --onnx needs it: name hidden tensors; the last of the model are "
        "'flat', 'before', 'hidden', 'scores'; of a model of trees the input, 'x'",
    ),
    "no data": ("--onnx m.onnx --layers hidden", "--data: is missing; --onnx needs it"),
    "layers of vectors": (
        "--embeddings d.npz --layers hidden",
        "--layers: belongs to --onnx; leave it out",
    ),
    "output of vectors": ("--embeddings d.npz --output p", "--output: belongs to --onnx; vectors have no output"),
    "metric": (
        f"{ONNX} --metric euclid",
        "--metric: got 'euclid': must be 'cosine' or 'squared_euclidean'",
    ),
    "metric of another layer": (
        f"{ONNX} --metric x=cosine",
        "--metric: got {'x': 'cosine'}: lacks a metric for 'hidden'; give one for each, or one for all",
    ),
    "metric of no layer": (
        f"{ONNX} --metric hidden=cosine,x=cosine",
        "--metric: got {'hidden': 'cosine', 'x': 'cosine'}: 'x' not among the layers 'hidden'",
    ),
    "metrics": (
        f"{ONNX} --metric hidden=l1",
        "--metric: got {'hidden': 'l1'}: must be 'cosine' or 'squared_euclidean', one for all layers or one for each",
    ),
    "max-dim": (f"{ONNX} --max-dim 0", "--max-dim: got 0: must be a whole number of at least 1"),
    "alpha": (f"{ONNX} --alpha 1.5", "--alpha: got 1.5: must be a number of more than 0 and less than 1"),
    "name": (
        f"{ONNX} --name -",
        "--name: got '-': must be 1 to 63 letters, digits, '.', '_' or '-', the first a letter or a digit",
    ),
    "parts of another form": (
        f"{ONNX} --nonconformity density --parts density",
        "--parts: got 'density': belong to --nonconformity joint and only to it",
    ),
    "unknown part": (
        f"{ONNX} --nonconformity joint --parts energie",
        "--parts: got 'energie': must be 'posterior', 'posterior_hidden', 'density', 'density_hidden', "
        "'density_last', 'density_hidden_tail', 'class_density', 'class_density_hidden', 'class_density_last', "
        "'class_density_hidden_tail', 'energy' or 'boundary_distance'; did you mean 'energy'?",
    ),
    "auto without a budget": (
        f"{ONNX} --precision auto",
        "--max-p-value-change: is not set: must be set, below 1, for --precision auto, which it decides",
    ),
    "share": (
        f"{ONNX} --calibration-share 1.0",
        "--calibration-share: got 1; must lie strictly in (0, 1), for instance 0.2 for a fifth of the rows",
    ),
    "share of no row": (
        f"{ONNX} --calibration-share 0.001",
        "--calibration-share: got 0.001, which is 0 of 200 distinct rows; some must calibrate, and some be left for "
        "the bank",
    ),
    "share of every row": (
        f"{ONNX} --calibration-share 0.999",
        "--calibration-share: got 0.999, which is 200 of 200 distinct rows; some must calibrate, and some be left "
        "for the bank",
    ),
    "boundaries of probabilities": (
        "--onnx p.onnx --layers hidden --data d.npz --nonconformity joint --parts boundary_distance,density",
        "--parts: got 'boundary_distance', made of the linear layer before the logits, but 'p' is not what a linear "
        "layer yields; leave it out, or name the tensor before the softmax by --output",
    ),
    "energy of probabilities": (
        "--onnx p.onnx --layers hidden --data d.npz --nonconformity joint --parts energy,density",
        "--parts: got 'energy', but the energy of 'p' is the same for every row, as it is for probabilities; leave it "
        "out, or name the tensor before the softmax by --output",
    ),
    "unknown layer": (
        "--onnx m.onnx --layers hid --data d.npz",
        "--layers: got 'hid', which is no tensor or node of the model; it has 5 names, the closest are 'hidden', "
        "'scores', 'flat', 'before', 'act'",
    ),
    "too few rows for alpha": (
        f"{ONNX} --alpha 0.01",
        "calibration: 20 rows cannot give a p-value of 0.01; at least 99 are needed after the reference rows are set "
        "aside, or choose alpha >= 0.0476191, or --nonconformity density, which sets none aside",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), OPTIONS.values(), ids=OPTIONS)
def test_unfit_options_are_refused(folder, capsys, monkeypatch, arguments, message):
    """The option, its value, what is allowed."""
    refused(folder, capsys, monkeypatch, arguments, message)


@pytest.mark.parametrize(
    "arguments",
    ["--data d.npz", "--onnx m.onnx --embeddings d.npz", f"{ONNX} --calibration c.npz --calibration-share 0.1"],
    ids=["no source", "two sources", "two calibrations"],
)
def test_contradictions_are_usage_errors(folder, capsys, monkeypatch, arguments):
    """Exit status 2, as for any wrong use of a command."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as e:
        main(["fit", *arguments.split(), "--out", "o"])
    assert e.value.code == 2


def changed(**arrays):
    """The arrays of `d.npz`, with some in another form; None leaves one out."""
    return {k: v for k, v in {"x_train": X, "y_train": Y, **arrays}.items() if v is not None}


with_nan = X.copy()
with_nan[7, 0, 0] = np.nan
DATA = {
    "no labels": (
        changed(y_train=None),
        r"d\.npz: lacks 'y_train'; it holds 'x_train'; write .* x_train, y_train",
    ),
    "labels beyond the output": (
        changed(y_train=Y + 1),
        "d.npz: y_train[3] is 4, but output 'scores' of the model tells 4 classes apart; labels must be the index of "
        "one, 0 to 3 (50 labels are not)",
    ),
    "labels not integer": (
        changed(y_train=Y.astype(float)),
        "d.npz: y_train is float64 (200,); it must be one integer per row: y_train.astype(int), if it holds whole "
        "numbers",
    ),
    "one-hot labels": (
        changed(y_train=np.eye(4, dtype=np.int64)[Y]),
        "d.npz: y_train is int64 (200, 4); it must be one integer per row: y_train.argmax(axis=1), if each row "
        "marks its class",
    ),
    "one-hot labels of other numbers": (  # an index into these was taken for that of a row
        changed(y_train=255 * np.eye(4, dtype=np.int64)[Y]),
        "d.npz: y_train is int64 (200, 4); it must be one integer per row: y_train.argmax(axis=1), if each row "
        "marks its class",
    ),
    "names for labels": (  # numpy.unique would number them by the alphabet
        changed(y_train=np.array(list("dcba"))[Y], class_names=list("dcba")),
        "d.npz: y_train is <U1 (200,); it must be one integer per row: [list(class_names).index(label) for label in "
        "y_train], with the classes in the order that the training rows have",
    ),
    "column of labels": (
        changed(y_train=Y[:, None]),
        "d.npz: y_train is int64 (200, 1); it must be one integer per row: y_train.reshape(-1)",
    ),
    "fewer labels": (changed(y_train=Y[:9]), "d.npz: x_train has 200 rows, y_train 9; they must be equal"),
    "class names": (
        changed(class_names=list("abc")),
        "--output: no output is 2-D float with 3 columns, one for each class name; the float outputs are 'scores' "
        "float32 [rows, 4]: name the tensor or node to take by --output (a scikit-learn model converted with "
        "zipmap='columns': convert it with zipmap=False); the last tensors of the model are 'flat', 'before', "
        "'hidden', 'scores'",
    ),
    "dtype of the model": (
        changed(x_train=X.astype(np.float64)),
        "--data: x_train is float64 [rows, 2, 3], input 'x' of the model takes float32 [rows, 2, 3]; store the rows as "
        "the model takes them, scaled as it was trained",
    ),
    "dtype of no detector": (
        changed(x_train=X.astype(np.float16)),
        f"d.npz: x_train is float16; it must be one of {ARRAYS}: convert it",
    ),
    "no rows": (
        changed(x_train=X[:0], y_train=Y[:0]),
        "d.npz: x_train has shape [0, 2, 3]; it must be [rows, numbers, ...], with a row at least",
    ),
    "numbers without rows": (
        changed(x_train=X[:, 0, 0]),
        "d.npz: x_train has shape [200]; it must be [rows, numbers, ...], with a row at least: x_train.reshape(1, -1) "
        "is one row, x_train.reshape(-1, 1) a row a number",
    ),
    "not finite": (
        changed(x_train=with_nan),
        "d.npz: x_train has 1 rows with NaN or infinity, the first is row 7; remove them, or fill missing values in",
    ),
    "a class without rows": (
        changed(y_train=Y % 3),
        "d.npz: x_train has no row for the bank of 1 of 4 classes, the first is 'c3'; every class needs at least one: "
        "add rows, lower the calibration share, or give by --output what has a column for each class, if 'scores' has "
        "not",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), DATA.values(), ids=DATA)
def test_unfit_rows_are_refused(folder, capsys, monkeypatch, arrays, message):
    """File, array, what is allowed."""
    np.savez(folder / "d.npz", **arrays)

    refused(folder, capsys, monkeypatch, ONNX, message)


V = X.reshape(200, 6)
VECTORS = {
    "axes": ({"x_train": X}, "", "d.npz: x_train has shape [200, 2, 3]; vectors must be [rows, numbers]: reshape them"),
    "names without labels": (
        {"x_train": V, "class_names": ["a"]},
        "",
        "d.npz: has class_names but no y_train; add the labels, or leave class_names out",
    ),
    "absurd label": (
        {"x_train": V, "y_train": np.where(np.arange(200) == 5, 10**12, 0)},
        "",
        "d.npz: y_train[5] is 1000000000000; labels are indices of classes and must lie in 0 to 199 (1 labels "
        "lie outside)",
    ),
    "text labels": (
        {"x_train": V, "y_train": np.array(["a"] * 200)},
        "",
        "d.npz: y_train is <U1 (200,); it must be one integer per row: class_names, y_train = numpy.unique(y_train, "
        "return_inverse=True)",
    ),
    "energy": (
        {"x_train": V, "y_train": Y},
        "--nonconformity joint --parts energy",
        "--parts: got 'energy', but vectors have no logits; leave it out",
    ),
    "boundaries": (
        {"x_train": V, "y_train": Y},
        "--nonconformity joint --parts boundary_distance",
        "--parts: got 'boundary_distance', made of the linear layer before the logits, but vectors have none; leave it "
        "out",
    ),
    "posterior of one class": (
        {"x_train": V},
        "--nonconformity posterior",
        "--nonconformity: got 'posterior', which compares classes, but there is only one; choose density",
    ),
    "all alike": (
        {"x_train": np.ones((200, 6), np.float32) * np.arange(1, 201, dtype=np.float32)[:, None]},
        "",
        "all representations of a layer are equal to within the rounding of float32, so it cannot tell rows apart; "
        "leave the layer out, or subtract from the rows what they have in common",
    ),
}


@pytest.mark.parametrize(("arrays", "options", "message"), VECTORS.values(), ids=VECTORS)
def test_unfit_vectors_are_refused(folder, capsys, monkeypatch, arrays, options, message):
    """File, array, what is allowed."""
    np.savez(folder / "d.npz", **arrays)

    refused(folder, capsys, monkeypatch, f"--embeddings d.npz {options}", message)


C = rows(100, seed=2)
CALIBRATION = {
    "no labels": ({"x_test": C}, r"c\.npz: lacks 'y_test'; it holds 'x_test'; write .* x_test, y_test"),
    "shape": (
        {"x_test": C[:, :1], "y_test": Y[:100]},
        "c.npz: x_test is float32 [rows, 1, 3], x_train of d.npz is float32 [rows, 2, 3]; prepare both in the same way",
    ),
    "dtype": (
        {"x_test": C.astype(np.float64), "y_test": Y[:100]},
        "c.npz: x_test is float64 [rows, 2, 3], x_train of d.npz is float32 [rows, 2, 3]; prepare both in the same way",
    ),
    "labels": (
        {"x_test": C, "y_test": Y[:100] + 1},
        "c.npz: y_test[3] is 4; labels are indices of classes and must lie in 0 to 3 (25 labels lie outside)",
    ),
    "repeated": (
        {"x_test": np.concatenate([C, C[:2]]), "y_test": Y[:102]},
        "c.npz: x_test has 2 rows whose content came before, the first is example 100, a copy of example 0; remove the "
        "copies, or the false-alarm rate does not hold",
    ),
    "rows of the bank": (
        {"x_test": np.concatenate([C, X[3:5]]), "y_test": Y[:102]},
        "c.npz: x_test has 2 rows whose content also stands in x_train of d.npz, the first is example 100; remove "
        "them, or the false-alarm rate does not hold",
    ),
}


@pytest.mark.parametrize(("arrays", "message"), CALIBRATION.values(), ids=CALIBRATION)
def test_unfit_calibration_rows_are_refused(folder, capsys, monkeypatch, arrays, message):
    """Above all rows that the bank holds."""
    np.savez(folder / "c.npz", **arrays)

    refused(folder, capsys, monkeypatch, f"{ONNX} --calibration c.npz", message)


@pytest.mark.parametrize("file", ["one array", "objects", "pickle", "text"])
def test_a_file_that_is_no_npz_of_numbers_is_refused_with_the_way_to_write_one(folder, capsys, monkeypatch, file):
    """Nothing says how to load a pickle, which NumPy takes any text for: that would run what is in it."""
    if file == "one array":
        np.save(folder / "d.npy", X)
        (folder / "d.npy").rename(folder / "d.npz")
    elif file == "objects":
        np.savez(folder / "d.npz", x_train=np.array([None, 1]), y_train=Y)
    elif file == "pickle":
        (folder / "d.npz").write_bytes(pickle.dumps({"x_train": X}))
    else:
        (folder / "d.npz").write_text("1,2,3\n")

    remedy = r"write it by np\.savez with x_train, y_train"
    message = rf"d\.npz: not an \.npz file of plain arrays \((?!.*(pickled|unsafely)).*\); {remedy}"
    refused(folder, capsys, monkeypatch, "--onnx m.onnx --layers hidden --data d.npz", message)


@pytest.mark.parametrize(
    ("out", "message"),
    [("", "it is empty; name a directory"), ("d.npz", "got 'd.npz', which is a file; name a directory")],
    ids=["empty", "file"],
)
@pytest.mark.parametrize("command", ["run digits", "evaluate b --inliers d", "recalibrate b --data d", "ablate digits"])
def test_a_folder_that_is_none_is_a_usage_error(folder, capsys, monkeypatch, command, out, message):
    """An empty one would be the current directory; a file would stop the command only after its work."""
    monkeypatch.chdir(folder)
    (folder / "d.npz").touch()
    for arguments in (command.split(), ["fit", "--embeddings", "d.npz"]):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--out", out])
        assert stop.value.code == 2
        assert f"argument --out: {message}" in capsys.readouterr().err


def test_training_rows_outside_the_bank_do_not_calibrate_either(folder, capsys, monkeypatch):
    """The classifier has seen all of x_train, though the bank holds a few."""
    np.savez(folder / "c.npz", x_test=np.concatenate([C, X]), y_test=np.concatenate([Y[:100], Y]))

    refused(
        folder,
        capsys,
        monkeypatch,
        f"{ONNX} --calibration c.npz --bank-rows 4",
        "c.npz: x_test has 200 rows whose content also stands in x_train of d.npz, the first is example 100; .*",
    )
    kept = np.concatenate([C, X[100:102]])
    np.savez(folder / "c.npz", x_test=kept, y_test=Y[:102])
    refused(
        folder,
        capsys,
        monkeypatch,
        f"{ONNX} --calibration c.npz --bank-rows 4",
        "c.npz: x_test has 2 rows whose content also stands in x_train of d.npz, the first is example 100; remove "
        "them, or the false-alarm rate does not hold",
    )


def test_a_link_to_nowhere_where_the_bundle_should_go_is_named(folder, capsys, monkeypatch):
    """It is no folder, and none can be made there; nothing is written in its place."""
    (folder / "o").symlink_to("nowhere")

    refused(
        folder,
        capsys,
        monkeypatch,
        ONNX,
        "--out: cannot write to o (Not a directory); choose another folder",
    )
    assert (folder / "o").readlink().name == "nowhere"
