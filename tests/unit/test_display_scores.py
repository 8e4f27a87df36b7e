"""What people and programs read of scores and bundles, figure by figure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from softkin import display, score_display
from softkin.manifest import Approximation, FileEntry
from softkin.scores import Neighbors, Parts
from standin import StandIn, manifest


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal in which no line is folded."""
    monkeypatch.setenv("COLUMNS", "200")


def three_rows():
    """Scores, parts and neighbours of two layers, no two figures alike."""
    scores = StandIn().score(np.arange(18, dtype=np.float32).reshape(3, 2, 3), num_neighbors=3)
    neighbors = Neighbors(
        layers=("conv", "dense"),
        ids=np.arange(18).reshape(3, 2, 3),
        labels=np.array([[[0, 0, 1], [1, 2, 2]], [[1, 1, 1], [2, 0, 0]], [[2, 2, 2], [-1, -1, -1]]], np.int32),
        distances=np.arange(18, dtype=np.float32).reshape(3, 2, 3) / 4,
        shares=np.arange(18, dtype=np.float32).reshape(3, 2, 3) / 32,
    )
    parts = Parts(names=("one_part", "another"), values=np.array([[1.0, 2.0], [4.0, 3.0], [6.0, 5.0]]))
    return dataclasses.replace(
        scores,
        p_value=np.array([0.5, 1.234e-05, 0.25]),
        is_outlier=np.array([False, True, False]),
        outlier_score=np.array([1.5, np.inf, 2.5]),
        neighbors=neighbors,
        parts=parts,
    )


def test_rows_that_have_names_are_called_by_them(capsys, monkeypatch):
    """In the place of numbers in a table, with and without lines; beside them in JSON. No name is taken for markup."""
    names = ["no 1", "b/[red]\n.png", "c"]

    score_display.print_table(three_rows(), ["a", "b", "c"], names=names, flagged_only=True)
    assert r"│ b/[red]\n.png │ outlier │" in capsys.readouterr().out
    monkeypatch.setattr(score_display, "LONGEST_TABLE", 2)
    score_display.print_table(three_rows(), ["a", "b", "c"], names=names)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:24].rstrip() for line in lines[:4]] == [
        "row            verdict",
        "no 1           inlier",
        r"b/[red]\n.png  outlier",
        "c              inlier",
    ]
    score_display.print_json(three_rows(), ["a", "b", "c"], names=names, flagged_only=True)
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (row["row"], row["name"]) == (1, "b/[red]\n.png")


def test_a_name_that_has_no_room_is_not_folded(capsys, monkeypatch):
    """It may be a path to copy; by their numbers the same rows have lines in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    scores, long = dataclasses.replace(three_rows(), neighbors=None), "far/below/some/folder/scan 17.png"

    score_display.print_table(scores, ["a", "b", "c"])
    assert capsys.readouterr().out.startswith("\u250f")
    score_display.print_table(scores, ["a", "b", "c"], names=["x", "y", long])
    assert capsys.readouterr().out.splitlines()[3].startswith(f"{long}  inlier")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b", "c"], None),  # of something else: columns, classes
        ([1, 2], None),
        ([["a", "b"], ["c", "d"]], None),
        (np.array(["a", "b"], object), None),  # pickled
    ],
)
def test_an_array_names_rows_where_it_has_a_text_for_each(tmp_path, names, found):
    """Any other array of that name is left alone, as it was."""
    np.savez(tmp_path / "x.npz", x_test=np.zeros((2, 3)), names=names)
    np.savez(tmp_path / "none.npz", x_test=np.zeros((2, 3)))
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))

    assert score_display.read_names(str(tmp_path / "x.npz"), 2) == found
    assert score_display.read_names(str(tmp_path / "none.npz"), 2) is None
    assert score_display.read_names(str(tmp_path / "x.npy"), 2) is None


def test_json_has_every_figure_of_every_row(capsys):
    """By its name, evidence layer by layer; an infinite score is no number there. The last line counts."""
    scores = three_rows()
    classes = ["a", "b"]  # of a server that lists fewer than it predicts

    score_display.print_json(scores, classes)

    *rows, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for i, row in enumerate(rows):
        evidence, parts = row.pop("neighbors"), row.pop("parts")
        predicted = int(scores.predicted_class[i])
        assert row == {
            "row": i,
            "is_outlier": i == 1,
            "p_value": scores.p_value[i],
            "outlier_score": None if i == 1 else scores.outlier_score[i],
            "predicted_class": predicted,
            "predicted_class_name": [*classes, "2"][predicted],
            "credibility": scores.credibility[i],
            "confidence": scores.confidence[i],
            "class_p_values": scores.class_p_values[i].tolist(),
        }
        assert parts == dict(zip(scores.parts.names, scores.parts.values[i], strict=True))
        n = scores.neighbors
        for k, layer in enumerate(n.layers):
            assert evidence[layer] == [
                {
                    "id": n.ids[i, k, j],
                    "class_name": [*classes, "2"][n.labels[i, k, j]],
                    "distance": n.distances[i, k, j],
                    "share": n.shares[i, k, j],
                }
                for j in range(3)
                if n.labels[i, k, j] >= 0
            ]
    assert last["budget"] == {"rows": 3, "flagged": 1, **dataclasses.asdict(scores.budget)}


def test_plain_columns_stand_under_their_heads(capsys, monkeypatch):
    """However long p-values and names are; the classes of the last layer's neighbours, by frequency. No line trails."""
    monkeypatch.setattr(score_display, "LONGEST_TABLE", 2)
    names, classes = ("a_part_of_five_words", "another"), ["a", "b", "laced ankle boot"]
    scores = dataclasses.replace(three_rows(), predicted_class=np.array([0, 2, 1], np.int32))
    scores = dataclasses.replace(scores, parts=dataclasses.replace(scores.parts, names=names))

    score_display.print_table(scores, classes)
    score_display.print_table(dataclasses.replace(scores, neighbors=None), classes)

    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "row  verdict  predicted class   p-value    credibility  strangest in          nearest training rows (dense)",
        "0    inlier   a                 0.5        0.06                               laced ankle boot x2, b",
        "1    outlier  laced ankle boot  1.234e-05  0.02         a part of five words  a x2, laced ankle boot",
        "2    inlier   b                 0.25       0.01                               none",
    ]
    assert lines[6] == "0    inlier   a                 0.5        0.06"


@pytest.mark.parametrize(("columns", "lines"), [("80", True), ("78", True), ("77", False), ("40", False), ("1", False)])
def test_a_terminal_too_narrow_for_a_table_gets_plain_columns(capsys, monkeypatch, columns, lines):
    """The terminal breaks their lines, but no word is taken apart letter by letter."""
    monkeypatch.setenv("COLUMNS", columns)

    score_display.print_table(three_rows(), ["a", "b", "laced ankle boot"])

    out = capsys.readouterr().out
    assert ("┃" in out) == lines
    assert all(word in out for word in ("row", "verdict", "predicted", "class", "credibility", "strangest", "nearest"))


def test_a_table_of_flagged_rows_keeps_their_numbers_and_counts_all(capsys):
    """The second of three."""
    score_display.print_table(three_rows(), ["a", "b", "c"], flagged_only=True)

    out = capsys.readouterr().out
    assert [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")] == ["1"]
    assert "3 rows, 1 flagged: 33.33%" in out


def test_without_a_flagged_row_there_is_nothing_but_the_count(capsys):
    """No table of no rows."""
    scores = dataclasses.replace(three_rows(), is_outlier=np.zeros(3, bool))

    score_display.print_table(scores, ["a", "b", "c"], flagged_only=True)

    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("3 rows, 0 flagged: 0.00%")


def test_below_the_table_stands_what_the_strangest_respects_mean(capsys):
    """Those of outliers alone, each once: `class_density` of an inlier needs no explanation."""
    names = ("class_density", "energy", "posterior_hidden")
    parts = Parts(names=names, values=np.array([[1.0, 0.0, 0.0], [2.0, 4.0, 3.0], [1.0, 9.0, 3.0]]))
    scores = dataclasses.replace(three_rows(), parts=parts, is_outlier=np.array([False, True, True]))

    score_display.print_table(scores, ["a", "b", "c"])

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("class", "energy", "posterior"))] == [
        "energy: the network's own logits are small"
    ]
    assert lines[-1].startswith("3 rows, 2 flagged")


def test_a_layer_keeps_its_name_and_says_that_it_is_one(capsys):
    """Underscores and brackets are its own, and a layer may be called like a part."""
    neighbors = dataclasses.replace(three_rows().neighbors, layers=("conv_[b]1", "energy"))
    parts = Parts(names=("conv_[b]1", "energy"), values=np.array([[1.0, 0.0], [4.0, 2.0], [1.0, 9.0]]))
    scores = dataclasses.replace(
        three_rows(), parts=parts, neighbors=neighbors, is_outlier=np.array([False, True, True])
    )

    score_display.print_table(scores, ["a", "b", "c"])

    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[5] for row in rows] == ["", "conv_[b]1", "energy"]
    assert "conv_[b]1, energy: the layer in which" in out
    assert "logits" not in out


def test_of_one_class_the_table_shows_the_numbers_of_training_rows(capsys):
    """Its name would be the same for all; a layer that overflows has none. One respect alone explains itself."""
    parts = Parts(names=("dense",), values=np.array([[1.0], [4.0], [1.0]]))
    neighbors = dataclasses.replace(
        three_rows().neighbors, ids=np.array([[[1] * 3, [7, 0, 9]]] * 2 + [[[1] * 3, [-1] * 3]])
    )
    scores = dataclasses.replace(three_rows(), parts=parts, neighbors=neighbors)

    score_display.print_table(scores, ["all"])

    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [row[6] for row in rows] == ["7, 0, 9", "7, 0, 9", "none"]
    assert "dense: " not in out


def test_a_table_of_eighty_letters_keeps_the_word_credibility_whole(capsys, monkeypatch):
    """The longest that stands in every table."""
    monkeypatch.setenv("COLUMNS", "80")

    score_display.print_table(three_rows(), ["ankle boot", "sandal", "sneaker"])

    assert "credibility" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [1, 256, 257, 1000])
def test_rows_travel_in_steps_and_none_is_lost(rows):
    """In their order."""
    x = np.arange(rows * 2).reshape(rows, 2)

    np.testing.assert_array_equal(np.concatenate(list(score_display.in_steps(x))), x)


def test_an_array_without_rows_is_sent_as_it_is():
    """Whoever takes no empty requests says so himself."""
    (step,) = score_display.in_steps(np.zeros((0, 3)))

    assert step.shape == (0, 3)


def test_the_bar_counts_rows_on_standard_error(capsys, monkeypatch):
    """Standard output is for the answer."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    steps = [StandIn().score(np.zeros((n, 2, 3), np.float32)) for n in (4, 3)]

    assert list(score_display.progress(iter(steps), 7)) == steps

    found = capsys.readouterr()
    assert found.out == ""
    assert "7/7" in found.err


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ü", "plain ü"), ("a\nb\x1b[2J", r"a\nb\x1b[2J"), ("\x7f\x9b2J\u202e", r"\x7f\x9b2J\u202e")],
)
def test_names_are_spelled_where_they_would_do_something(text, shown):
    """Line feeds, escapes, their one-letter forms, and what turns the direction of writing."""
    assert display.spelled(text) == shown


APPROXIMATION = Approximation(
    budget=0.5,
    max_p_value_change=0.123,
    mean_p_value_change=0.0456,
    verdict_changes=0.0123,
    auroc_changes={"noise": 0.01234, "far": -0.5},
)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "7 rows in float32"),
        ({"condensed_from": 70}, "7 prototypes of 70 rows in float32"),
        (
            {"bank_precision": "int8", "approximation": APPROXIMATION},
            "7 rows in int8; against all rows in float32, p-values change by 0.12 at most and 0.046 in the mean, "
            "verdicts on 1.23% of the calibration rows, AUROC of noise by +0.0123, AUROC of far by -0.5000",
        ),
    ],
    ids=["all", "condensed", "rounded"],
)
def test_a_bank_says_how_it_was_made_smaller_and_what_that_changed(changes, text):
    """All rows in float32 are the measure."""
    assert display.describe_bank(dataclasses.replace(manifest(), **changes)) == text


def shown_rows(capsys, m, digest="ab" * 32):
    """The facts of a printed manifest by their names, and its layers; what is folded over several lines is joined."""
    display.print_manifest(m, digest, as_json=False)
    facts, layers = {}, []
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        if len(cells) == 2 and cells[0]:
            facts[cells[0]] = cells[1]
        elif len(cells) == 2:
            facts[[*facts][-1]] += cells[1]
        elif cells:
            layers.append(cells)
    return facts, layers


def test_a_manifest_is_shown_row_by_row(capsys):
    """What it was made for and of, how large the files are, and each layer's own figures."""
    m = manifest()
    sizes = {f"f{i}": FileEntry(sha256="00", size=size) for i, size in enumerate((1_500_000, 2_750_000))}
    layers = (dataclasses.replace(m.layers[0], weight=3.0), m.layers[1])
    joint = dataclasses.replace(m, nonconformity="joint", parts=("energy", "density"), files=sizes, layers=layers)

    (plain, _), (facts, shown) = (shown_rows(capsys, each) for each in (m, joint))

    assert plain["nonconformity"] == "density"
    assert facts == {
        "detector": "standin 1",
        "digest": "ab" * 32,
        "created": "2026-01-01T00:00:00+00:00",
        "input": "float32 [rows, 2, 3]",
        "classes": "3: ankle boot, sandal, sneaker [new]",
        "nonconformity": "joint of energy, density",
        "default alpha": "0.05",
        "calibration": "99 rows, smallest p-value 0.01; by predicted class 19 to 50",
        "certificate": "at alpha 0.05 the false-alarm rate is at most 0.09007, at confidence 0.95; the smallest rate "
        "that can be certified is 0.02981",
        "bank": "7 rows in float32",
        "size": "4.2 MB in 2 files",
    }
    assert shown == [
        ["layer", "dim", "metric", "temperature", "weight", "reducer"],
        ["conv", "4", "cosine", "0.1", "3", "none"],
        ["dense", "2", "squared_euclidean", "2.5", "1", "none"],
    ]


def test_names_of_classes_are_shown_as_they_are_and_a_hundred_of_them(capsys, monkeypatch):
    """A bundle of more says where all of them are."""
    monkeypatch.setenv("COLUMNS", "2000")
    names = tuple(f":dog:{i}" for i in range(101))
    m = manifest()

    hundred, more = (shown_rows(capsys, dataclasses.replace(m, classes=names[:n]))[0]["classes"] for n in (100, 101))

    assert hundred == "100: " + ", ".join(names[:100])
    assert more == "101: " + ", ".join(names[:100]) + ", ... (all: --json)"


def test_a_narrow_terminal_folds_a_digest_and_cuts_nothing_off(capsys, monkeypatch):
    """It is there to be compared."""
    monkeypatch.setenv("COLUMNS", "60")
    digest = hashlib.sha256().hexdigest()

    facts, _ = shown_rows(capsys, manifest(), digest)

    assert facts["digest"] == digest
