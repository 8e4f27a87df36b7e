"""A bundle that does not do leaves the one before it serving, and everything else as it was."""

from __future__ import annotations

import gc
import hashlib
import re
import shutil
import weakref

import numpy as np
import pytest

import resealed
import standin_bundles
from softkin.bundle import BANK, CALIBRATION, GOLDEN, MODEL
from softkin.detector import Detector
from softkin.errors import DeviceError, PreconditionError


def _truncated(path):
    file = path / MODEL
    file.write_bytes(file.read_bytes()[:-7])


def _flipped(path):
    """One bit, in the middle of the bank."""
    content = bytearray((path / BANK).read_bytes())
    content[len(content) // 2] ^= 0x10
    (path / BANK).write_bytes(content)


def _wrong_digest(path):
    resealed.change_manifest(path, lambda m: m["files"][CALIBRATION].update(sha256="0" * 64))


def _future_format(path):
    resealed.change_manifest(path, lambda m: m.update(format_version=999))


def _no_manifest(path):
    (path / "manifest.json").unlink()


def _half_a_manifest(path):
    file = path / "manifest.json"
    file.write_text(file.read_text()[: file.stat().st_size // 2])


def _missing_file(path):
    (path / GOLDEN).unlink()


def _other_golden_scores(path):
    def raise_one(scores):
        scores[3] += 0.1

    resealed.change_array(path, GOLDEN, "outlier_scores", raise_one)


def _nan_in_the_bank(path):
    def spoil(rows):
        rows[5, 1] = np.nan

    resealed.change_array(path, BANK, "rows.wide", spoil)


def _nan_in_the_calibration(path):
    def spoil(scores):
        scores[-1] = np.nan

    resealed.change_array(path, CALIBRATION, "outlier_scores", spoil)


def _not_a_model(path):
    """Whole, by its sha256, but nothing that onnxruntime can load."""
    content = b"not a model"
    (path / MODEL).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    resealed.change_manifest(path, lambda m: m["files"].update({MODEL: entry}))


DAMAGES = {
    _truncated: r"model\.onnx: has \d+ bytes, the manifest says \d+",
    _flipped: r"bank\.safetensors: its sha256 is not the manifest's",
    _wrong_digest: r"calibration\.safetensors: its sha256 is not the manifest's",
    _future_format: r"format_version is 999, this softkin reads",
    _no_manifest: r"manifest\.json: cannot be read",
    _half_a_manifest: r"manifest\.json: not valid JSON",
    _missing_file: r"golden\.safetensors: cannot be read",
    _other_golden_scores: r"golden row 3 scores",
    _nan_in_the_bank: r"bank\.safetensors",
    _nan_in_the_calibration: r"calibration\.safetensors",
    _not_a_model: r"model\.onnx: not a readable ONNX model",
}


@pytest.fixture(params=DAMAGES, ids=lambda d: d.__name__.strip("_"))
def damage(request):
    """Spoils a bundle."""
    return request.param


@pytest.fixture(params=["availability", "resource"])
def serving(start, tiny, tmp_path, request):
    """A server with the tiny bundle as version 1, its labels set and its drift state kept, that has scored."""
    resealed.copy(tiny.path, tmp_path / "one")
    point(tmp_path, "one")
    running = start(
        bundles=(tmp_path / "bundle",),
        device="cpu",
        threads=1,
        admin_port=0,
        bundle_root=tmp_path,
        reload_policy=request.param,
        drift_state=tmp_path / "state",
    )
    with running.admin() as admin:
        admin.set_label("tiny", "1", "stable")
        admin.set_label("tiny", "1", "blue")
    running.score(tiny.inliers[:40])
    running.until(lambda: running.sample("softkin_drift_rows", detector="tiny", version="1") == 40)
    return running


def point(folder, name):
    """Let the configured path, a link, lead to another bundle."""
    link = folder / "bundle"
    link.unlink(missing_ok=True)
    link.symlink_to(name)


def state(running):
    """All that must not change: what is listed, shown, watched and loaded."""
    with running.admin() as admin:
        detectors = admin.detectors()
    shown = running.series("softkin_detector_info", "softkin_drift", "softkin_alpha", "softkin_calib", "softkin_bank")
    with running.client() as client:
        drift = client.drift()
    return detectors, shown, drift.digest, drift.report.rows, sorted(running.server._watches._watches)


def answers(running, tiny):
    """Version and scores of the same rows."""
    found = running.score(np.concatenate([tiny.inliers[:20], tiny.outliers[:20]]))
    return found.budget.version, list(found.outlier_score), list(found.p_value)


def test_a_reload_of_a_damaged_bundle_changes_nothing(serving, tiny, tmp_path, damage, caplog):
    """Whether it claims to be the same version or a new one; the log says what is wrong, and a good one then loads."""
    version = "2" if serving.server._settings.reload_policy == "availability" else "1"
    two = resealed.copy(tiny.path, tmp_path / "two", version=version, created="2031-01-01T00:00:00+00:00")
    whole = shutil.copytree(two, tmp_path / "three")
    damage(two)
    point(tmp_path, "two")
    before = state(serving)

    serving.server.reloader.reload()

    assert serving.sample("softkin_reloads_total", result="failed") == 1
    assert "event=reload_failed" in caplog.text
    assert re.search(DAMAGES[damage], caplog.text)
    assert state(serving) == before
    assert answers(serving, tiny)[0] == "1"
    assert (
        answers(serving, tiny)[1]
        == Detector.load(tmp_path / "one")
        .score(np.concatenate([tiny.inliers[:20], tiny.outliers[:20]]))
        .outlier_score.tolist()
    )

    point(tmp_path, whole.name)
    serving.server.reloader.reload()

    assert serving.sample("softkin_reloads_total", result="loaded") == 1
    with serving.admin() as admin:
        assert [(d.version, d.labels) for d in admin.detectors()] == [(version, ("blue", "stable"))]


def test_the_admin_service_says_what_is_wrong_and_changes_nothing(serving, tiny, tmp_path, damage):
    """FAILED_PRECONDITION with the file and the remedy."""
    two = resealed.copy(tiny.path, tmp_path / "two", version="2")
    damage(two)
    before = state(serving)

    with serving.admin() as admin, pytest.raises(PreconditionError, match=DAMAGES[damage]):
        admin.load("two", ["stable"])

    assert state(serving) == before
    assert answers(serving, tiny)[0] == "1"


def test_a_bundle_that_is_overwritten_while_it_is_read_changes_nothing(start, tmp_path, loading, rows, caplog):
    """What was found out about it before is true no longer, such as its name; the next reload finds the other."""
    path = tmp_path / "bundle"
    standin_bundles.write(path, "1")

    def load(where, **options):
        if loading.loaded == [path]:
            standin_bundles.write(path, "2", name="other")
        return loading(where, **options)

    running = start(load=load, bundles=(path,), drift_state=tmp_path / "state")
    before = running.series("softkin_detector_info", "softkin_drift", "softkin_alpha")
    standin_bundles.write(path, "2")

    running.server.reloader.reload()

    assert "was replaced while it was being read; reload again" in caplog.text
    assert running.series("softkin_detector_info", "softkin_drift", "softkin_alpha") == before
    assert running.score(rows(1)).budget.version == "1"

    running.server.reloader.reload()

    assert running.score(rows(1), detector="other").budget.version == "2"


@pytest.mark.parametrize(("error", "traceback"), [(DeviceError("no memory"), False), (RuntimeError("no"), True)])
def test_the_log_names_the_path_that_failed_and_a_fault_by_its_traceback(
    start, tmp_path, loading, caplog, error, traceback
):
    """Of many paths; where the error itself says what to do, a traceback would only bury it."""
    path = tmp_path / "bundle"
    standin_bundles.write(path, "1")
    running = start(load=loading, bundles=(path,))
    standin_bundles.write(path, "2")
    loading.failures = [error]

    running.server.reloader.reload()

    [record] = [r for r in caplog.records if "event=reload_failed" in r.getMessage()]
    assert f"path={path} error=" in record.getMessage()
    assert bool(record.exc_info) == traceback


@pytest.mark.parametrize("file", [BANK, MODEL, CALIBRATION, GOLDEN])
def test_no_flipped_bit_is_ever_served(start, tiny, tmp_path, file):
    """Twenty places of every file, one bit each time: none of them loads, and the answers stay the same."""
    resealed.copy(tiny.path, tmp_path / "one")
    point(tmp_path, "one")
    running = start(bundles=(tmp_path / "bundle",), device="cpu", threads=1)
    content = (tmp_path / "one" / file).read_bytes()
    expected = answers(running, tiny)[1:]
    rng = np.random.default_rng(len(file))
    two = resealed.copy(tiny.path, tmp_path / "two", version="2")
    point(tmp_path, "two")

    for at in rng.integers(0, len(content), 20):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(0, 8))
        (two / file).write_bytes(flipped)
        running.server.reloader.reload()
        assert answers(running, tiny)[1:] == expected

    assert running.sample("softkin_reloads_total", result="failed") == 20


def test_memory_of_real_detectors_is_given_back_without_the_garbage_collector(tiny):
    """Sessions hold most of it: a cycle of references would keep it for a while after every reload."""
    detector = Detector.load(tiny.path, device="cpu", threads=1)
    detector.score(tiny.inliers[:9], num_neighbors=2)
    detector.warm_up(300)
    gone = weakref.ref(detector)
    gc.disable()
    try:
        del detector
        assert gone() is None
    finally:
        gc.enable()
