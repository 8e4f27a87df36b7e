"""Reports on a disk that is full: their files appear together or not at all, and the command says how to go on."""

from __future__ import annotations

import errno
import os
import re

import numpy as np
import pytest

from small_files import files_of_at_most
from softkin import InvalidInputError
from softkin_training.ablate import ablate
from softkin_training.ablation_plan import FAR, Cell, Plan
from softkin_training.ablation_table import write_table
from softkin_training.cli import main
from softkin_training.entanglement_plot import draw_entanglement
from softkin_training.evaluate import evaluate, write_report

pytestmark = pytest.mark.training


@pytest.fixture
def full_at(monkeypatch):
    """A disk that notices how full it is as files are synced: the first, the second, ..."""

    def full(number):
        calls, fsync = [], os.fsync

        def sync(fd):
            calls.append(fd)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(fd)

        monkeypatch.setattr(os, "fsync", sync)

    return full


def contents(folder):
    """Of every file, hidden ones too."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def reports(tiny):
    """Two of the tiny bundle."""
    return [
        evaluate(tiny.path, inliers=tiny.inliers[:n], labels=None, outliers={"far": tiny.outliers}, compare=False)
        for n in (100, 200)
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_file_of_a_new_report_stands_beside_those_of_the_old_one(reports, tmp_path, full_at, number):
    """Whichever of the three does not fit."""
    write_report(reports[0], tmp_path)
    before = contents(tmp_path)
    full_at(number)

    with pytest.raises(InvalidInputError, match=r"\(No space .*\); no file of the report was written: make"):
        write_report(reports[1], tmp_path)

    assert contents(tmp_path) == before


@pytest.mark.parametrize("which", ["report.md", "report.json", "report.html"])
def test_a_report_of_which_a_file_does_not_fit_leaves_none(reports, tmp_path, which):
    """The page is the longest, so it was missing beside the other two."""
    write_report(reports[0], tmp_path / "whole")
    size = (tmp_path / "whole" / which).stat().st_size

    with files_of_at_most(size - 1), pytest.raises(InvalidInputError, match=r"\(File too large\)"):
        write_report(reports[0], tmp_path / "out")

    assert contents(tmp_path / "out") == {}


def test_evaluate_prints_what_it_found_though_it_cannot_be_written(tiny, tmp_path, capsys):
    """It has taken minutes."""
    np.savez(tmp_path / "in.npz", x_test=tiny.inliers[:100])
    np.savez(tmp_path / "far.npz", x_test=tiny.outliers)
    out = tmp_path / "out"
    given = ["--inliers", str(tmp_path / "in.npz"), "--outliers", f"far={tmp_path / 'far.npz'}", "--out", str(out)]

    with files_of_at_most(50_000):
        assert main(["evaluate", str(tiny.path), *given]) == 1

    said = capsys.readouterr()
    assert "max softmax" in said.out
    assert "report.html" not in said.out
    assert said.err == (
        f"softkin-train: error: --out: cannot write to {out} (File too large); no file of the report was written: make "
        "room, or choose another folder\n"
    )


@pytest.mark.parametrize("number", [1, 2])
def test_pictures_of_entanglement_are_of_one_run(tmp_path, full_at, number):
    """The one is no older than the other."""
    measured = {"dense": {"value": 0.5, "chance": 1.0, "ratio": 0.5, "temperature": 1.0}}
    draw_entanglement([{"epoch": 1, "probe": measured}], tmp_path)
    before = contents(tmp_path)
    full_at(number)

    with pytest.raises(InvalidInputError, match=r"\); the training is kept: make room, then go on with --resume$"):
        draw_entanglement([{"epoch": n, "probe": measured} for n in (1, 2)], tmp_path)

    assert contents(tmp_path) == before


def cells(auroc):
    """One of an ablation."""
    rate = {"auroc": auroc, "caught": {"value": 0.5}}
    score = {"title": "softkin", "outliers": {"far": rate}, "false_alarms": {"value": 0.05}}
    report = {"accuracy": 0.9, "scores": {"softkin": score}}
    return [Cell(family=FAR, train="plain", detect="density", seed=0, report=report)]


@pytest.mark.parametrize("number", [1, 2])
def test_tables_of_an_ablation_are_of_the_same_cells(tmp_path, full_at, number):
    """Markdown and JSON hold the same figures; to choose another folder would be to train everything again."""
    write_table(cells(0.5), tmp_path)
    before = contents(tmp_path)
    full_at(number)

    with pytest.raises(InvalidInputError, match=r"\(No space .*\); make room, then run it again: what is done stays$"):
        write_table(cells(0.6), tmp_path)

    assert contents(tmp_path) == before


def test_an_ablation_is_not_told_of_an_option_that_it_lacks(tmp_path):
    """It goes on by itself, without --resume."""
    plan = Plan(train={"plain": {}}, detect={"density": {}}, families={FAR: ()})
    quick = ["training.epochs=1", "model.channels=[4, 8]", "model.dense=16", "data.known_classes=[]"]

    goes_on = pytest.raises(InvalidInputError, match=r"^out_dir: .*; make room, then run it again: what is done stays$")
    with files_of_at_most(100), goes_on:
        ablate("digits", plan, tmp_path, overrides=quick, seeds=(0,), say=lambda line: None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("short write"), "short write"),
    ],
    ids=["of the system", "of a library"],
)
def test_a_write_that_fails_in_a_cell_names_its_folder(tmp_path, monkeypatch, error, reason):
    """Such an error knows no file, and one of a library no number."""
    plan = Plan(train={"plain": {}}, detect={"density": {}}, families={FAR: ()})

    def fail(recipe):
        raise error

    monkeypatch.setattr("softkin_training.ablate.load_dataset", fail)

    cell = re.escape(str(tmp_path / "all-classes" / "plain" / "seed0"))
    message = rf"^out: all classes, plain, seed 0: cannot write {cell} \({reason}\); make room, then run it again"
    with pytest.raises(InvalidInputError, match=message):
        ablate("digits", plan, tmp_path, seeds=(0,), say=lambda line: None)
