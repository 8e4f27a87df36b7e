"""Where bundles are put: a place that is taken, one that is taken meanwhile, and one that cannot be."""

from __future__ import annotations

import dataclasses
import os
import shutil
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

import resealed
from softkin import BundleError, Detector
from softkin import bundle as bundles
from softkin_training.build import build


class Overtaken(dict):
    """References of a calibration; while they are written, another builder of the same path gets there first."""

    def __init__(self, references, other):
        super().__init__(references)
        self.other = other

    def items(self):
        """Those of the references, after the other builder."""
        self.other()
        return super().items()


@pytest.mark.parametrize("replace", [False, True])
def test_of_two_builds_of_one_path_neither_is_lost_unnoticed(tiny, tmp_path, replace):
    """What was asked about replacing holds when the bundle is put in place, not only when its writing begins."""
    loaded, out = bundles.read_bundle(tiny.path), tmp_path / "b"
    arguments = {"model": tiny.model, **{n: getattr(loaded, n) for n in ("bank", "golden", "used_rows")}}
    first, second = (dataclasses.replace(loaded.manifest, version=v) for v in ("first", "second"))
    other = partial(bundles.write_bundle, out, first, calibration=loaded.calibration, **arguments)
    calibration = dataclasses.replace(loaded.calibration, references=Overtaken(loaded.calibration.references, other))
    refusal = pytest.raises(BundleError, match="b: exists already, written in the meantime; choose another name")

    with nullcontext() if replace else refusal:
        bundles.write_bundle(out, second, calibration=calibration, **arguments, replace=replace)

    assert bundles.read_bundle(out).manifest.version == ("second" if replace else "first")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def write(tiny, path):
    """The tiny bundle once more, in the place of whatever is there."""
    loaded = bundles.read_bundle(tiny.path)
    parts = {n: getattr(loaded, n) for n in ("bank", "calibration", "golden", "used_rows")}
    return bundles.write_bundle(path, loaded.manifest, model=tiny.model, **parts, replace=True)


@pytest.mark.parametrize("taken", ["file", "folder", "link"])
def test_what_is_no_bundle_is_not_replaced(tiny, tmp_path, taken):
    """`--out .` in a folder that has a `bundle` of another kind; its contents would be lost."""
    path = tmp_path / "bundle"
    if taken == "file":
        path.write_text("mine")
    elif taken == "folder":
        (path / "mine").mkdir(parents=True)
    else:
        path.symlink_to("nowhere")

    with pytest.raises(BundleError, match="bundle: exists already and is no bundle; choose another directory, or rem"):
        write(tiny, path)

    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert path.is_symlink() or path.is_file() or [p.name for p in path.iterdir()] == ["mine"]


@pytest.mark.parametrize("contents", [None, "manifest.json"], ids=["empty", "damaged bundle"])
def test_an_empty_folder_and_a_damaged_bundle_are_replaced(tiny, tmp_path, contents):
    """Nothing is lost, and to build it again is what a damaged bundle's own message says."""
    path = tmp_path / "bundle"
    path.mkdir()
    if contents:
        (path / contents).write_text("{")

    write(tiny, path)

    assert bundles.read_bundle(path).bank.ids.tolist() == bundles.read_bundle(tiny.path).bank.ids.tolist()


@pytest.mark.parametrize("path", ["x" * 300, "a\0b"], ids=["too long", "NUL"])
def test_a_path_that_no_file_can_have_is_no_bundle(tmp_path, path):
    """Never the operating system's own exception."""
    with pytest.raises(BundleError, match=r"cannot be read \(.+\); a bundle is a directory"):
        bundles.read_bundle(tmp_path / path)


@pytest.mark.parametrize("given", [".", "b/manifest.json"], ids=["its parent", "a file in it"])
def test_a_path_beside_a_bundle_is_refused_with_the_bundle(tiny, tmp_path, given):
    """Runs hold their bundle in a directory of their own."""
    shutil.copytree(tiny.path, tmp_path / "b")

    with pytest.raises(BundleError, match=rf"; a bundle is a directory with a manifest\.json, such as {tmp_path}/b$"):
        bundles.read_manifest(tmp_path / given)


def test_a_path_that_no_file_can_have_is_not_written(tiny, tmp_path):
    """The builder says so in its own words."""
    with pytest.raises(BundleError, match=r"cannot write the bundle \(File name too long\); nothing was changed there"):
        build(tmp_path / ("x" * 300), tiny.model, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)


def test_a_link_that_leads_nowhere_is_no_free_place(tiny, tmp_path):
    """Somebody put it there: it is not replaced unasked."""
    (tmp_path / "b").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleError, match="exists already; choose another directory"):
        build(tmp_path / "b", tiny.model, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)

    assert (tmp_path / "b").is_symlink()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_a_bundle_is_as_readable_as_the_umask_lets_files_be(tiny, tmp_path, umask, mode):
    """A server runs as somebody else than the builder."""
    before = os.umask(umask)
    try:
        build(tmp_path / "b", tiny.model, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    finally:
        os.umask(before)

    assert {f.name: oct(f.stat().st_mode & 0o777) for f in (tmp_path / "b").iterdir()} == dict.fromkeys(
        bundles.FILES, oct(mode)
    )


@pytest.mark.parametrize("moment", ["verify_files", "read_bundle"])
def test_a_bundle_that_is_replaced_while_it_is_read_mixes_no_two(tiny, tiny_copy, tmp_path, monkeypatch, moment):
    """Both are whole, and of one network and bank: only the calibration would tell, and it has other p-values."""
    other, done = resealed.copy(tiny.path, tmp_path / "other"), getattr(bundles, moment)
    resealed.change_array(other, bundles.CALIBRATION, "outlier_scores", lambda scores: np.add(scores, 0.1, out=scores))

    def replaced_then(path):
        found = done(path)
        tiny_copy.rename(tmp_path / "aside")
        other.rename(tiny_copy)
        return found

    monkeypatch.setattr(bundles, moment, replaced_then)

    with pytest.raises(BundleError, match=f"{tiny_copy}: was replaced or changed while it was being read; load it ag"):
        Detector.load(tiny_copy)

    monkeypatch.undo()
    assert Detector.load(tiny_copy).digest != Detector.load(tmp_path / "aside").digest == bundles.digest(tiny.path)


def test_a_bundle_that_could_not_be_read_is_never_put_in_place(tiny, tmp_path):
    """It is read back before that: nothing stays of one that no server would load."""
    loaded = bundles.read_bundle(tiny.path)
    arguments = {n: getattr(loaded, n) for n in ("bank", "calibration", "used_rows")}
    golden = dataclasses.replace(loaded.golden, inputs=loaded.golden.inputs[:, :-1])

    with pytest.raises(BundleError, match=r"golden.safetensors: .*inputs"):
        bundles.write_bundle(tmp_path / "b", loaded.manifest, model=tiny.model, golden=golden, **arguments)

    assert list(tmp_path.iterdir()) == []


def test_a_bundle_whose_files_change_while_it_is_read_is_refused(tiny_copy, monkeypatch):
    """What is read after all had been verified is perhaps of another bundle."""
    read = bundles.read_golden

    def overtaken(file, manifest):
        found = read(file, manifest)
        file.write_bytes(file.read_bytes())
        os.utime(file, (1, 1))
        return found

    monkeypatch.setattr(bundles, "read_golden", overtaken)

    with pytest.raises(BundleError, match="was replaced or changed while it was being read; load it again"):
        bundles.read_bundle(tiny_copy)


def test_a_directory_that_cannot_be_made_is_a_clear_error(tiny, tmp_path):
    """A file stands where a directory is needed."""
    (tmp_path / "file").write_text("")

    with pytest.raises(BundleError, match="cannot write the bundle"):
        build(tmp_path / "file" / "b", tiny.model, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
