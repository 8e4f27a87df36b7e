"""Paths that no disk takes: they are refused as any that leads nowhere, not as a fault of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from softkin.errors import DataError
from softkin_training.cli import main
from softkin_training.new_rows import read_calibrating, read_inputs, read_labelled
from standin import manifest

pytestmark = pytest.mark.training

TOO_LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", TOO_LONG, "--out", "out"], f"{TOO_LONG}: no such recipe; give a TOML file or one of '"),
        (["ablate", TOO_LONG, "--out", "out"], f"{TOO_LONG}: no such recipe; give a TOML file or one of '"),
        (["train", "digits", "--out", TOO_LONG], f"--out: cannot write to {TOO_LONG} (File name too long); choose"),
        (
            ["train", "digits", "--out", "out", "--set", f"data.outliers.far={TOO_LONG}"],
            f"data.outliers.far: {TOO_LONG}: cannot be read (File name too long)",
        ),
    ],
    ids=["recipe", "recipe of an ablation", "output", "outliers"],
)
def test_a_name_too_long_for_any_file_is_refused_in_a_line(tmp_path, monkeypatch, capsys, arguments, message):
    """By the argument or the name, and nothing is made."""
    monkeypatch.chdir(tmp_path)

    code = main([*arguments, "--quiet"] if arguments[0] == "train" else arguments)

    [line] = capsys.readouterr().err.splitlines()
    assert code == 1
    assert line.startswith(f"softkin-train: error: {message}")
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.parametrize("read", [read_inputs, read_labelled, read_calibrating])
def test_new_rows_at_such_a_path_are_refused_by_it(read):
    """It is neither a folder of images nor a file."""
    with pytest.raises(DataError, match=rf"^{TOO_LONG}: cannot be read \(File name too long\)"):
        read(Path(TOO_LONG), manifest())
