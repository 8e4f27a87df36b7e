"""Folders for results that cannot be written: they are refused before the work."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from softkin_training.cli import main

COMMANDS = [
    "evaluate nowhere --inliers i --outliers o=o",
    "recalibrate nowhere --data d",
    "fit --embeddings nowhere",
    "run nowhere",
    "ablate nowhere",
]


def refusal(command, out, capsys):
    """What a command says of `--out`; its other arguments lead nowhere, which it must not have found out yet."""
    assert main([*command.split(), "--out", out]) == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["/dev/null", "/dev/null/x", "link", "link/x", "file/x"])
def test_what_is_or_lies_below_no_folder_is_refused_before_the_work(tmp_path, monkeypatch, capsys, command, out):
    """A device, a file, a link that leads nowhere: nothing can be made there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")

    line = refusal(command, out, capsys)

    assert line == f"softkin-train: error: --out: cannot write to {out} (Not a directory); choose another folder"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["others", "others/a/b"])
def test_a_folder_that_others_own_is_refused_before_the_work(tmp_path, monkeypatch, capsys, command, out):
    """Also where folders are to be made below it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others").mkdir()
    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: (str(path), mode) != ("others", os.W_OK | os.X_OK))

    line = refusal(command, out, capsys)

    assert line == f"softkin-train: error: --out: cannot write to {out} (Permission denied); choose another folder"
    assert list((tmp_path / "others").iterdir()) == []


def test_a_disk_that_is_read_only_is_told_from_a_lack_of_rights(tmp_path, monkeypatch, capsys):
    """The remedy is another: no change of owner helps."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))

    line = refusal(COMMANDS[0], str(tmp_path), capsys)

    assert f"--out: cannot write to {tmp_path} (Read-only file system); choose another folder" in line
