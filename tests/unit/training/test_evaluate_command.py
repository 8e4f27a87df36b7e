"""`softkin-train evaluate`, end to end on files."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from softkin_training.cli import main
from softkin_training.evaluate import evaluate

pytestmark = pytest.mark.training


@pytest.fixture
def files(tiny, tmp_path):
    """What the command reads."""
    np.savez(tmp_path / "in.npz", x_test=tiny.inliers, y_test=np.arange(len(tiny.inliers)) % 3)
    np.savez(tmp_path / "far.npz", x_test=tiny.outliers)
    np.savez(tmp_path / "close.npz", x_test=tiny.inliers * np.float32(1.3))
    np.savez(tmp_path / "cal.npz", x_test=tiny.calibration.x, y_test=tiny.calibration.y)
    np.savez(tmp_path / "wrong.npz", x_test=tiny.inliers, y_test=np.full(500, 7))
    return tmp_path


def arguments(tiny, files, *more, inliers="in.npz"):
    """What follows `softkin-train`, for the tiny bundle."""
    outliers = [f"far={files / 'far.npz'}", f"close={files / 'close.npz'}"]
    given = ["--inliers", str(files / inliers), "--outliers", *outliers, "--out", str(files / "report")]
    return ["evaluate", str(tiny.path), *given, *more]


def command(tiny, files, *more, inliers="in.npz"):
    """`softkin-train evaluate` on the tiny bundle."""
    return main(arguments(tiny, files, *more, inliers=inliers))


def test_the_command_writes_the_report_and_prints_its_main_table(tiny, files, capsys):
    """With calibration rows every score has false alarms; the figures are those of the function."""
    assert command(tiny, files, "--calibration", str(files / "cal.npz"), "--near", "close", "--alpha", "0.1") == 0

    raw = json.loads((files / "report" / "report.json").read_text())
    assert raw["alpha"] == 0.1
    assert raw["near"] == ["close"]
    assert next(iter(raw["scores"])) == "softkin"
    assert len(raw["scores"]) == 19
    assert raw["scores"]["vim"]["false_alarms"]["rows"] == 500
    outliers = {"far": tiny.outliers, "close": tiny.inliers * np.float32(1.3)}
    found = evaluate(tiny.path, inliers=tiny.inliers, labels=None, outliers=outliers, alpha=0.1)
    own = raw["scores"]["softkin"]["outliers"]["close"]
    assert own["auroc"] == found.scores["softkin"].outliers["close"].auroc
    assert own["caught"]["value"] == found.scores["softkin"].outliers["close"].caught.value
    assert raw["classifier"]["rows"] == 500
    printed = capsys.readouterr().out
    assert "max softmax" in printed
    assert printed.endswith(f"\nreport: {files / 'report' / 'report.html'}\n")


def test_neither_torch_nor_scikit_learn_is_imported(tiny, files):
    """The whole command, all scores and corrupted inliers included: who fits without torch can compare without it."""
    given = arguments(tiny, files, "--calibration", str(files / "cal.npz"), "--corrupt", "20")
    code = (
        f"import sys\nfrom softkin_training.cli import main\nassert main({given!r}) == 0\n"
        "print(sorted({'torch', 'sklearn', 'lightning_fabric'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_command_does_without_calibration_rows(tiny, files):
    """Then only the bundle's own score has p-values."""
    assert command(tiny, files) == 0

    raw = json.loads((files / "report" / "report.json").read_text())
    assert [n for n, s in raw["scores"].items() if s["false_alarms"]] == ["softkin"]


@pytest.mark.parametrize(
    ("more", "inliers", "message"),
    [
        pytest.param(["--near", "fra"], "in.npz", "near: got 'fra'", id="near"),
        pytest.param(["--corrupt", "-1"], "in.npz", "--corrupt: got -1", id="corrupt"),
        pytest.param([], "wrong.npz", "y_test[0] is 7", id="labels"),
        pytest.param(["--calibration", "no.npz"], "in.npz", "no.npz: cannot be read", id="missing"),
        pytest.param(["--outliers", "far"], "in.npz", "must read NAME=FILE", id="no name"),
        pytest.param(["--outliers", "a=x.npz", "a=y.npz"], "in.npz", "cannot be read", id="no file"),
        pytest.param(["--outliers", " =x.npz"], "in.npz", "must read NAME=FILE", id="blank name"),
        pytest.param(["--outliers", "\udcff=x.npz"], "in.npz", "'\\udcff', which is not in UTF-8", id="no text"),
    ],
)
def test_mistakes_end_with_one_clear_line(tiny, files, capsys, more, inliers, message):
    """Exit status 1, no traceback."""
    assert command(tiny, files, *more, inliers=inliers) == 1

    error = capsys.readouterr().err
    assert error.startswith("softkin-train: error: ")
    assert message in error


def test_a_bundle_that_outliers_swallow_is_told_where_it_belongs(tiny, files, capsys):
    """`--outliers` takes all names that follow it, so the bundle behind them was said to be missing."""
    with pytest.raises(SystemExit):
        main(["evaluate", "--inliers", "i.npz", "--out", str(files), "--outliers", "a=x.npz", str(tiny.path)])

    error = capsys.readouterr().err
    assert f"argument --outliers: got the folder '{tiny.path}'; outliers must read NAME=FILE, and BUNDLE st" in error


@pytest.mark.parametrize("repeated", [(), ("--outliers",)])
def test_two_sets_of_one_name_are_refused(tiny, files, capsys, repeated):
    """One would hide the other, also where the option itself is repeated."""
    twice = [f"far={files / 'far.npz'}", *repeated, f"far={files / 'close.npz'}"]

    assert command(tiny, files, "--outliers", *twice) == 1
    assert "'far' twice" in capsys.readouterr().err
