"""Reloads of paths whose versions the admin service has changed meanwhile."""

from __future__ import annotations

import logging

import pytest

import standin_bundles


def versions(running):
    """Versions with their labels, as operators see them."""
    with running.admin() as admin:
        return {d.version: list(d.labels) for d in admin.detectors()}


def with_canary(start, tmp_path, loading):
    """The path of version 1, and a server to which the admin service has added version 2 from elsewhere."""
    path = tmp_path / "bundle"
    standin_bundles.write(path, "1")
    standin_bundles.write(tmp_path / "next", "2")
    running = start(load=loading, bundles=(path,), admin_port=0, bundle_root=tmp_path)
    with running.admin() as admin:
        admin.load("next", ["canary"])
    return path, running


def test_a_version_that_was_loaded_by_hand_first_is_taken_over_from_its_path(start, tmp_path, loading, rows, caplog):
    """A canary by the admin service, then the same bundle in the configured path: it is not loaded twice."""
    caplog.set_level(logging.INFO)
    path, running = with_canary(start, tmp_path, loading)
    standin_bundles.write(path, "2")

    running.server.reloader.reload()

    assert versions(running) == {"2": ["canary", "stable"]}
    assert len(loading.loaded) == 2
    assert "event=unloaded detector=standin version=1 " in caplog.text
    assert running.score(rows(1)).budget.version == "2"


def test_a_new_version_of_a_path_whose_own_was_unloaded_comes_beside_the_others(start, tmp_path, loading, rows):
    """It has nobody's place to take: no labels, and not the turn as the default. Unchanged, the path brings nothing."""
    path, running = with_canary(start, tmp_path, loading)
    with running.admin() as admin:
        admin.set_label("standin", "2", "stable")
        admin.unload("standin", "1")

    running.server.reloader.reload()
    unchanged = versions(running)
    standin_bundles.write(path, "3")
    running.server.reloader.reload()

    assert unchanged == {"2": ["canary", "stable"]}
    assert versions(running) == {"2": ["canary", "stable"], "3": []}
    assert running.score(rows(1)).budget.version == "2"
    assert len(running.series("softkin_detector_info")) == len(running.series("softkin_drift_rows")) == 2
    assert running.sample("softkin_reloads_total", result="failed") == 0


@pytest.mark.parametrize("version", ["1", "2"])
def test_what_was_unloaded_by_hand_has_no_place_for_what_the_path_came_to_hold(start, tmp_path, loading, rows, version):
    """It was loaded by hand too, be it under the version of the other, and is served and shown as before."""
    path = tmp_path / "bundle"
    standin_bundles.write(path, "1")
    standin_bundles.write(tmp_path / "last", "3")
    digest = standin_bundles.write(tmp_path / "next", version, shift=7)
    running = start(load=loading, bundles=(path,), admin_port=0, bundle_root=tmp_path)
    with running.admin() as admin:
        admin.load("last", ["stable"])
        admin.unload("standin", "1")
        admin.load("next", ["canary"])
    before = running.series("softkin_detector_info", "softkin_drift")
    standin_bundles.write(path, version, shift=7)

    running.server.reloader.reload()

    assert versions(running) == {version: ["canary"], "3": ["stable"]}
    assert running.score(rows(1), label="canary").budget.digest == digest
    assert running.series("softkin_detector_info", "softkin_drift").keys() == before.keys()
    assert running.sample("softkin_reloads_total", result="failed") == 0


def test_a_bundle_of_another_name_comes_where_the_old_one_was_unloaded_by_hand(start, tmp_path, loading):
    """There is nothing left that would have to go."""
    path = tmp_path / "bundle"
    standin_bundles.write(path, "1")
    standin_bundles.write(tmp_path / "next", "2")
    standin_bundles.write(tmp_path / "beside", "4", name="beside")
    running = start(load=loading, bundles=(path, tmp_path / "beside"), admin_port=0, bundle_root=tmp_path)
    with running.admin() as admin:
        admin.load("next", ["stable"])
        admin.unload("standin", "1")
    standin_bundles.write(path, "3", name="other")

    running.server.reloader.reload()

    assert versions(running) == {"2": ["stable"], "3": [], "4": []}
    assert running.sample("softkin_reloads_total", result="failed") == 0
