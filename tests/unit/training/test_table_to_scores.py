"""A table goes all the way: CSV in, then new rows and outliers of tables whose columns stand in another order."""

from __future__ import annotations

import csv
import json

import datasets
import numpy as np
import pytest

from small_tables import NETWORK
from softkin import Detector
from softkin.cli import main as softkin
from softkin.score_display import read_array, read_names
from softkin_training.cli import main

pytestmark = pytest.mark.training

RECIPE = f"""
name = "table"
[data]
source = "csv"
calibration_rows = 80
test_rows = 40
{NETWORK}bank_rows = 200
"""
CLASSES = ("low", "mid", "top")


def write(path, columns, n, *, seed, shift=0.0):
    """A table of such columns; returns its inputs in the order a, b, c."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 3)) + 3 * np.eye(3)[y] + shift
    cells = {**dict(zip("abc", x.T.tolist(), strict=True)), "label": [CLASSES[i] for i in y], "id": range(n)}
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*(cells[c] for c in columns), strict=True)])
    return x


@pytest.mark.slow
def test_a_table_goes_all_the_way(tmp_path, monkeypatch, capsys):
    """The bundle knows its columns by name, though the recipe left them to the file; every command goes by that."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "table.toml").write_text(RECIPE)
    known = write(tmp_path / "train.csv", ["a", "b", "c", "label", "id"], 400, seed=0)
    x = write(tmp_path / "new.csv", ["id", "c", "b", "label", "a"], 60, seed=3)
    write(tmp_path / "far.csv", ["b", "c", "a"], 50, seed=4, shift=30)
    bundle, new = str(tmp_path / "out" / "bundle"), str(tmp_path / "new.npz")
    settings = [
        "--set=data.name_column=id",
        f"--set=data.path={tmp_path / 'train.csv'}",
        f"--set=data.outliers.far={tmp_path / 'far.csv'}",
    ]

    assert main(["run", str(tmp_path / "table.toml"), "--out", str(tmp_path / "out"), "--quiet", *settings]) == 0

    detector = Detector.load(bundle)
    assert detector.manifest.classes == CLASSES
    assert detector.score(x).is_outlier.mean() < 0.25
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["scores"]["softkin"]["outliers"]["far"]["auroc"] > 0.9
    capsys.readouterr()
    assert softkin(["inspect", bundle]) == 0
    assert "float64 [rows, 3]: a, b, c " in capsys.readouterr().out

    assert main(["rows", bundle, "--data", str(tmp_path / "new.csv"), "--out", new]) == 0
    np.testing.assert_array_equal(read_array(new, None), x)
    assert read_names(new, 60) == [str(i) for i in range(60)]
    nearest = detector.score(known, num_neighbors=1).neighbors
    itself = (nearest.ids[:, -1, 0] == np.arange(400)).nonzero()[0].tolist()
    assert len(itself) > 150  # of the 200 in the bank
    assert all(nearest.names[i] == str(i) for i in itself)

    again = ["--data", str(tmp_path / "new.csv"), "--out", str(tmp_path / "again")]
    assert main(["recalibrate", bundle, *again]) == 0
    assert "60 calibration rows" in capsys.readouterr().out
    assert Detector.load(tmp_path / "again").manifest.provenance["recalibrated"]["accuracy"] > 0.8

    sets = ["--inliers", str(tmp_path / "new.csv"), "--outliers", f"far={tmp_path / 'far.csv'}", "--corrupt", "0"]
    assert main(["evaluate", str(tmp_path / "again"), *sets, "--out", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["scores"]["softkin"]["outliers"]["far"]["auroc"] > 0.9

    capsys.readouterr()
    files = ["--data", str(tmp_path / "far.csv"), "--training", str(tmp_path / "train.csv")]
    assert main(["explain", bundle, *files, "--most", "1", "--json"]) == 0
    [said] = map(json.loads, capsys.readouterr().out.splitlines())
    i = said["compared_with"]["id"]
    assert said["compared_with"]["name"] == str(i)
    assert {c["column"]: c["training_value"] for c in said["changes"]}.items() <= dict(
        zip("abc", known[i].tolist(), strict=True)
    ).items()
