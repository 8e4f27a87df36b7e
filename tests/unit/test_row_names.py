"""What training rows are called: kept with the bank, given with neighbours."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from resealed import change_arrays
from softkin import BundleError, DataError, Detector
from softkin.bundle import BANK, read_bundle
from softkin.cli import main as softkin
from softkin.row_names import LONGEST_NAME, RowNames
from softkin.scores import Neighbors
from softkin_training.build import build
from softkin_training.cli import main


def test_names_come_back_by_id_whatever_they_are_made_of():
    """In any order of ids and any shape; no name where there is none."""
    names = RowNames.of(np.array([7, 2, 30, 5]), ["a/b ü.png", "", "🦉\n", "x"])

    assert len(names) == 3
    assert names.find(np.array([[30, 7, 7], [2, -1, 99]])) == {7: "a/b ü.png", 30: "🦉\n"}
    assert names.find(np.array([], np.int64)) == {}
    assert RowNames.of(np.array([4]), [""]).find(np.array([4, -1])) == {}


def test_a_name_of_a_thousand_letters_is_cut():
    """Or a column of long texts would make answers that no message may carry."""
    names = RowNames.of(np.arange(2), ["é" * LONGEST_NAME, "é" * (LONGEST_NAME + 1)]).find(np.arange(2))

    assert names[0] == "é" * LONGEST_NAME
    assert len(names[1]) == LONGEST_NAME
    assert names[1].endswith("é...")


def test_what_utf8_cannot_spell_is_escaped():
    """File names are bytes, and what is no text in them must not keep a bundle from being written, or read."""
    assert RowNames.of(np.array([1]), ["caf\udce9.png"]).find(np.array([1])) == {1: r"caf\udce9.png"}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("ids", np.array([3, 2]), "ids must be ascending"),
        ("ids", np.array([2, 2]), "ids must be ascending"),
        ("ids", np.array([2**63 - 1, -(2**63)]), "ids must be ascending"),
        ("ids", np.array([1, 2, 3]), "3 ids and 2 names"),
        ("ends", np.array([4, 3]), "end one after the other"),
        ("ends", np.array([-1, 3]), "end one after the other"),
        ("ends", np.array([2**63 - 1, -(2**63)]), "end one after the other"),
        ("ends", np.array([1, 2]), "end one after the other, the last with the letters"),
        ("ends", np.array([2, 3]), "must not end within a letter"),
        ("letters", np.array([0x61, 0xC3, 0x28], np.uint8), "invalid continuation byte"),
    ],
)
def test_a_bundle_whose_names_do_not_hold_together_is_refused(tiny_copy, key, value, complaint):
    """With a digest that fits: the file is as its maker wrote it, and its maker was wrong."""
    names = {"ids": np.array([0, 1]), "ends": np.array([1, 3]), "letters": np.frombuffer("aá".encode(), np.uint8)}
    written = {f"names.{k}": v for k, v in names.items()}
    change_arrays(tiny_copy, BANK, lambda arrays: arrays.update(written))
    assert read_bundle(tiny_copy).bank.names.find(np.arange(3)) == {0: "a", 1: "á"}
    change_arrays(tiny_copy, BANK, lambda arrays: arrays.update({f"names.{key}": value}))

    with pytest.raises(BundleError, match=rf"bank\.safetensors: names of training rows: .*{complaint}"):
        read_bundle(tiny_copy)


@pytest.fixture
def named(tiny, tmp_path):
    """The tiny bundle, every third row of whose bank has no name."""
    path = tmp_path / "named"
    naming = lambda ids: [f"row {i}" if i % 3 else "" for i in ids]  # noqa: E731
    build(path, tiny.model, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration, naming=naming)
    return path


def test_neighbours_come_with_their_names(named, tiny):
    """Those that have one, and no other; nothing else of the answer changes, nor does it without names."""
    x = tiny.inliers[:20]
    plain = Detector.load(tiny.path, device="cpu").score(x, num_neighbors=4).neighbors

    found = Detector.load(named, device="cpu").score(x, num_neighbors=4).neighbors

    assert plain.names == {}
    np.testing.assert_array_equal(found.ids, plain.ids)
    assert found.names == {i: f"row {i}" for i in np.unique(found.ids).tolist() if i % 3}
    assert Detector(read_bundle(named), device="cpu").score(x, num_neighbors=4).neighbors.names == found.names
    assert Detector.load(named, device="cpu", row_names=False).score(x, num_neighbors=4).neighbors.names == {}


def test_rows_that_are_taken_out_of_an_answer_keep_their_own_names_alone(named, tiny):
    """Requests are scored together, and each gets what belongs to it; joined again, nothing is lost."""
    whole = Detector.load(named, device="cpu").score(tiny.inliers[:20], num_neighbors=2).neighbors
    parts = [whole.take(slice(i, i + 5)) for i in range(0, 20, 5)]

    for part in parts:
        assert part.names == {i: f"row {i}" for i in np.unique(part.ids).tolist() if i % 3}
    assert Neighbors.concatenate(parts).names == whole.names
    assert 0 < len(parts[0].names) < len(whole.names)


@pytest.mark.parametrize("changes", [{"condense": 3.0}, {"precision": "int8"}], ids=["condensed", "int8"])
def test_smaller_banks_have_the_names_of_the_rows_that_they_hold(tiny, tmp_path, changes):
    """A prototype goes by the row that stands for it."""
    spec = dataclasses.replace(tiny.spec, **changes)
    rows = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(tmp_path / "b", tiny.model, spec, **rows, naming=lambda ids: [f"row {i}" for i in ids])

    bank = read_bundle(tmp_path / "b").bank
    found = Detector.load(tmp_path / "b", device="cpu").score(tiny.inliers[:9], num_neighbors=3).neighbors

    assert bank.names.ids.tolist() == np.unique(bank.ids[bank.ids >= 0]).tolist()
    assert found.names == {i: f"row {i}" for i in np.unique(found.ids).tolist()}


def vectors(n, seed=0):
    """Rows of three classes and their labels."""
    y = np.arange(n) % 3
    return np.random.default_rng(seed).normal(size=(n, 4)) + 6 * np.eye(3, 4)[y], y


@pytest.mark.parametrize("dtype", [str, bytes])
def test_fit_takes_names_beside_its_rows(tmp_path, capsys, dtype):
    """From the same file; `inspect` says how many there are, and a recalibrated bundle keeps them."""
    x, y = vectors(300)
    names = np.array([f"case-{i}" for i in range(300)]).astype(np.dtype(dtype))
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, names_train=names)
    new, labels = vectors(90, seed=1)
    np.savez(tmp_path / "new.npz", x_test=new, y_test=labels)

    assert main(["fit", "--embeddings", str(tmp_path / "d.npz"), "--out", str(tmp_path)]) == 0
    again = ["--data", str(tmp_path / "new.npz"), "--out", str(tmp_path / "again")]
    assert main(["recalibrate", str(tmp_path / "bundle"), *again]) == 0

    for path in (tmp_path / "bundle", tmp_path / "again"):
        # A row of the bank is its own nearest neighbour.
        bank = read_bundle(path).bank
        i = int(bank.ids.max())
        found = Detector.load(path, device="cpu").score(x[i : i + 1], num_neighbors=1).neighbors
        assert (found.ids[0, -1, 0], found.names) == (i, {i: f"case-{i}"})
        capsys.readouterr()
        assert softkin(["inspect", str(path)]) == 0
        assert "240 rows in float32, 240 of them with a name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (np.array(["a", "b"]), r"names_train is <U1 \(2,\); it must be a text for each row of x_train, \(300,\)"),
        (np.arange(300), "names_train is int64"),
        (np.full((300, 1), "a"), r"names_train is <U1 \(300, 1\)"),
    ],
)
def test_names_that_are_not_one_text_a_row_are_refused(tmp_path, capsys, names, complaint):
    """They would call a row by another's name."""
    x, y = vectors(300)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, names_train=names)

    assert main(["fit", "--embeddings", str(tmp_path / "d.npz"), "--out", str(tmp_path)]) == 1
    with pytest.raises(DataError, match=complaint):
        raise DataError(capsys.readouterr().err)


def test_score_shows_the_row_that_each_is_most_like(named, tiny, capsys, monkeypatch):
    """By its name, else by its id; with and without lines, and beside each neighbour in JSON."""
    from softkin import score_display

    scores = Detector.load(named, device="cpu").score(tiny.inliers[:12], num_neighbors=2)
    n = scores.neighbors
    expected = [n.names.get(i, str(i)) for i in n.ids[:, -1, 0].tolist()]
    assert any(name.isdigit() for name in expected)
    assert not all(name.isdigit() for name in expected)

    monkeypatch.setenv("COLUMNS", "200")
    score_display.print_table(scores, ["a", "b", "c"])
    table = capsys.readouterr().out.splitlines()
    column = [cell.strip() for cell in table[1].split("┃")].index("most like")
    assert [line.split("│")[column].strip() for line in table[3:15]] == expected

    monkeypatch.setenv("COLUMNS", "60")
    score_display.print_table(scores, ["a", "b", "c"])
    lines = capsys.readouterr().out.splitlines()
    start, end = lines[0].index("most like"), lines[0].index("nearest training rows")
    assert [line[start:end].strip() for line in lines[1:13]] == expected

    score_display.print_json(scores, ["a", "b", "c"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:12]]
    found = [[near.get("name") for near in row["neighbors"]["narrow"]] for row in rows]
    assert found == [[n.names.get(i) for i in ids] for ids in n.ids[:, -1].tolist()]


def test_a_row_that_overflows_is_most_like_none(named, tiny, capsys, monkeypatch):
    """It has no neighbours in that layer; the first training row of all is one as any other."""
    from softkin import score_display

    scores = Detector.load(named, device="cpu").score(tiny.inliers[:2], num_neighbors=1)
    n = scores.neighbors
    ids, labels = n.ids.copy(), n.labels.copy()
    ids[1, -1], labels[1, -1] = -1, -1
    ids[0, -1, 0] = 0
    scores = dataclasses.replace(scores, neighbors=dataclasses.replace(n, ids=ids, labels=labels, names={0: "zero"}))

    monkeypatch.setenv("COLUMNS", "200")
    score_display.print_table(scores, ["a", "b", "c"])
    table = capsys.readouterr().out.splitlines()
    column = [cell.strip() for cell in table[1].split("┃")].index("most like")
    assert [line.split("│")[column].strip() for line in table[3:5]] == ["zero", ""]


@pytest.mark.parametrize("width", range(60, 200, 12))
def test_names_are_never_folded(tiny, tmp_path, capsys, monkeypatch, width):
    """They are copied from the terminal, long and of several words as they may be; columns stay below their heads."""
    from softkin import score_display

    rows = {"bank_rows": tiny.bank, "calibration_rows": tiny.calibration}
    build(
        tmp_path / "b",
        tiny.model,
        tiny.spec,
        **rows,
        naming=lambda ids: [f"left eye, {'0' * (i % 30)}{i}" for i in ids],
    )
    scores = Detector.load(tmp_path / "b", device="cpu").score(tiny.inliers[:12], num_neighbors=2)
    n = scores.neighbors
    expected = [n.names[i] for i in n.ids[:, -1, 0].tolist()]
    own = [f"the {'long ' * (i % 5)}row {i}" for i in range(12)]

    monkeypatch.setenv("COLUMNS", str(width))
    score_display.print_table(scores, ["a", "b", "c"], names=own)

    table = capsys.readouterr().out.splitlines()
    if table[0].startswith("row"):
        column = table[0].index("most like"), table[0].index("nearest training rows")
        found = [(line[: len(max(own, key=len))].strip(), line[slice(*column)].strip()) for line in table[1:13]]
    else:
        head = next(line for line in table if "most like" in line)
        column = [cell.strip() for cell in head.split("┃")].index("most like")
        cells = [[cell.strip() for cell in line.split("│")] for line in table if line.startswith("│")]
        assert len(cells) == 12, "something else is folded for them"
        found = [(line[1], line[column]) for line in cells]
    assert found == list(zip(own, expected, strict=True))
