"""Files that appear together, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from softkin import BundleError
from softkin.staging import staged


def contents(folder):
    """All files there by name."""
    return {f.name: f.read_text() for f in folder.iterdir()}


def write(*targets):
    """All of them at once."""
    with staged(*targets, what="export") as paths:
        for path in paths:
            path.write_text(f"new {path.name}")


@pytest.mark.parametrize("older", [False, True])
def test_what_was_there_comes_back_when_one_of_several_cannot_be_put_in_place(tmp_path, monkeypatch, older):
    """The last one is put there first: it must not stay, beside another than its own."""
    model, data = tmp_path / "model", tmp_path / "data"
    if older:
        model.write_text("old model")
        data.write_text("old data")
    before, placed, rename = contents(tmp_path), [], Path.rename

    def fail(path, target):
        if target == model and path.name == model.name:
            placed.append(data.read_text())
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    words = r"model: cannot write the export \(Input/output error\); nothing was changed there$"
    with pytest.raises(BundleError, match=words):
        write(model, data)

    assert placed == ["new data"]
    assert contents(tmp_path) == before


def test_a_folder_that_is_missing_is_named_with_what_to_do(tmp_path):
    """Whoever asked for it may have misspelt it."""
    missing = tmp_path / "missing"
    words = rf"nothing was changed there; make the directory {missing} first, or choose another$"

    with pytest.raises(BundleError, match=words):
        write(missing / "model")
