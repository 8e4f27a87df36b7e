"""What killed builds leave beside a bundle: nothing of it is lost, and nothing of it stays for ever."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from fresh_rows import entries
from softkin import bundle as bundles
from softkin import staging
from softkin_training.cli import main
from softkin_training.leftovers import tidy

KILLED = """
import os, pathlib, signal, sys
from softkin import bundle, staging
rename = pathlib.Path.rename
left = [int(sys.argv[2])]
def dying(self, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return rename(self, target)
pathlib.Path.rename = dying
b = bundle.read_bundle(sys.argv[1])
bundle.write_bundle(
    sys.argv[1], b.manifest, model=(b.path / bundle.MODEL).read_bytes(), bank=b.bank, calibration=b.calibration,
    golden=b.golden, used_rows=b.used_rows, replace=True,
)
"""
"""Replaces a bundle by itself, and dies before a rename."""


@pytest.fixture
def path(tiny_copy, tmp_path):
    """A bundle in a directory of its own."""
    (tmp_path / "out").mkdir()
    return shutil.copytree(tiny_copy, tmp_path / "out" / "bundle")


def left(path, *, new=None, old=None, host=None, seed="abcdefgh"):
    """A directory as a build leaves it that is killed, with these bundles in it."""
    prefix = staging.staging_prefix(path) if host is None else f".{path.name}.{host}."
    folder = path.with_name(prefix + seed)
    folder.mkdir()
    for source, name in ((new, path.name), (old, f"{path.name}.old")):
        if source:
            shutil.copytree(source, folder / name)
    return folder


@pytest.mark.parametrize("newest", ["aaaaaaaa", "bbbbbbbb"])
def test_of_two_bundles_that_were_set_aside_the_newer_is_put_back(path, newest):
    """The other is what that one replaced."""
    folders = {seed: left(path, old=path, seed=seed) for seed in ("aaaaaaaa", "bbbbbbbb")}
    for seed, folder in folders.items():
        os.utime(folder, (1e9, 2e9 if seed == newest else 1e9))
    expected = (folders[newest] / "bundle.old").stat().st_ino
    shutil.rmtree(path)

    put_back, removed = tidy(path)

    assert (path.stat().st_ino, entries(path.parent)) == (expected, ["bundle"])
    assert "put back" in put_back
    assert "removed; a killed build left it" in removed


@pytest.mark.parametrize("renames", [0, 1])
def test_a_build_that_is_killed_between_renames_loses_nothing(path, renames):
    """The old bundle is where it was, or set aside and put back by whoever builds next."""
    before = bundles.digest(path)
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path), str(renames)], timeout=60)
    assert ran.returncode == -signal.SIGKILL
    assert path.exists() == (renames == 0)

    (line,) = tidy(path)

    assert bundles.verify_files(path)[1] == before
    assert entries(path.parent) == ["bundle"]
    assert ("put back; a killed build had set it aside" in line) == (renames == 1)
    assert tidy(path) == []


def test_beside_a_complete_bundle_it_is_removed(path, tiny):
    """Whatever it holds: all that it could give back is there."""
    folder = left(path, old=tiny.path, new=tiny.path)

    assert tidy(path) == [f"{folder}: removed; a killed build left it, and {path} is complete"]
    assert entries(path.parent) == ["bundle"]


def test_the_beginning_of_a_bundle_is_removed_where_there_is_none(tmp_path):
    """A first build that was killed."""
    folder = left(tmp_path / "bundle")
    (folder / "bundle").mkdir()
    (folder / "bundle" / "model.onnx").write_bytes(b"x")

    assert tidy(tmp_path / "bundle") == [f"{folder}: removed; the beginning of a bundle, which a killed build left"]
    assert entries(tmp_path) == []


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_complete_bundle_beside_a_damaged_one_stays(path, tiny, which):
    """With the command that puts it there."""
    folder = left(path, **{which: tiny.path})
    (path / "model.onnx").write_bytes(b"x")

    (line,) = tidy(path)

    inside = folder / ("bundle.old" if which == "old" else "bundle")
    assert line.endswith(f"{path} is damaged: move it away, then to have it back: mv {inside} {path}")
    assert bundles.verify_files(inside)


def test_a_complete_bundle_where_there_is_none_stays(tmp_path, tiny):
    """A first build that was killed before the last rename; nothing is called damaged that is not there."""
    path = tmp_path / "bundle"
    made = left(path, new=tiny.path) / "bundle"

    assert tidy(path) == [f"{made}: is a complete bundle, which a killed build left; to have it back: mv {made} {path}"]
    assert bundles.verify_files(made)


def test_a_damaged_bundle_that_was_set_aside_stays(tmp_path, tiny):
    """Part of it may be wanted."""
    folder = left(tmp_path / "bundle", old=tiny.path)
    (folder / "bundle.old" / "model.onnx").write_bytes(b"x")

    (line,) = tidy(tmp_path / "bundle")

    assert "it is no complete bundle; look into it" in line
    assert entries(folder) == ["bundle.old"]


def test_what_is_being_written_stays(path):
    """Nothing is said of it: its writer takes it away."""
    with staging.staged(path, what="bundle") as (new,):
        new.mkdir()
        assert tidy(path) == []
        assert new.exists()
        shutil.copytree(path, new, dirs_exist_ok=True)

    assert entries(path.parent) == ["bundle"]


@pytest.mark.parametrize("host", ["other-host", ""])
def test_of_another_machine_it_is_told_of_only(path, host):
    """Its locks are not seen everywhere."""
    folder = left(path, host=host or None, seed="abcdefgh")
    if not host:
        folder = folder.rename(path.with_name(".bundle.abcdefgh"))

    (line,) = tidy(path)

    assert line.startswith(f"{folder}: a killed build left it, unless one on another machine is writing it")
    assert folder.exists()


def test_without_locks_it_is_told_of_only(path, monkeypatch):
    """Some network file systems have none, and then nothing says whether it is being written."""
    folder = left(path)

    def no_locks(fd, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    (line,) = tidy(path)

    assert line.startswith(f"{folder}: a killed build left it, unless one on another machine is writing it")
    assert folder.exists()


def test_a_link_is_not_followed(path, tmp_path):
    """What it leads to is no build's."""
    elsewhere = tmp_path / "elsewhere"
    path.rename(left(elsewhere) / "bundle.old")
    [folder] = tmp_path.glob(".elsewhere.*")
    link = path.with_name(f"{staging.staging_prefix(path)}abcdefgh")
    link.symlink_to(folder)

    (line,) = tidy(path)

    assert line.startswith(f"{link}: a build that was killed may have left it, and it cannot be read")
    assert entries(folder) == ["bundle.old"]


def test_other_files_are_none_of_it(path):
    """Of other bundles, and of another make."""
    for name in (".bundle2.abcdefgh", ".bundle.abcdefgh.txt", ".bundle.ABCDEFGH", "bundle.abcdefgh"):
        path.with_name(name).mkdir()
    path.with_name(".bundle.abcdefgh").write_text("a file")

    assert tidy(path) == []
    assert len(entries(path.parent)) == 6


@pytest.mark.parametrize("odd", ["no/such/folder/bundle", "a\0b/bundle"])
def test_where_there_is_nothing_there_is_nothing_to_say(tmp_path, odd):
    """The build says what is wrong with a path."""
    assert tidy(os.path.join(tmp_path, odd)) == []


def test_the_next_fit_says_what_became_of_it(tmp_path, capsys):
    """On standard error, and goes on."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "v.npz", x_train=rng.normal(size=(200, 6)).astype(np.float32))
    arguments = ["fit", "--embeddings", str(tmp_path / "v.npz"), "--out", str(tmp_path / "e")]
    assert main(arguments) == 0
    folder = left(tmp_path / "e" / "bundle")
    capsys.readouterr()

    assert main(arguments) == 0

    assert capsys.readouterr().err == (
        f"{folder}: removed; a killed build left it, and {tmp_path / 'e' / 'bundle'} is complete\n"
    )
