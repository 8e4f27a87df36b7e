"""Paths that are links to versions: moved on, exchanged, moved while they are read, or left without a bundle."""

from __future__ import annotations

import pytest

import standin_bundles
from softkin import bundle
from softkin.v1 import outlier_pb2 as pb


def write(folder, version):
    """A bundle named by its version, which its scores tell too."""
    standin_bundles.write(folder / str(version), str(version), shift=1000 * version)


def point(link, name):
    """Let a link lead to another bundle beside it."""
    link.unlink(missing_ok=True)
    link.symlink_to(name)


def versions(running, name="standin"):
    """Versions with their labels, as callers see them."""
    answer = running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20)
    return {d.version: list(d.labels) for d in answer.detectors if d.name == name}


MOVES = {"rolled on": (2, 3), "exchanged": (2, 1), "brought together": (2, 2)}


@pytest.mark.parametrize("first", ["previous", "current"])
@pytest.mark.parametrize(("previous", "current"), MOVES.values(), ids=MOVES)
def test_links_to_versions_can_be_moved_on_together(start, tmp_path, loading, rows, previous, current, first):
    """What one path gives up and another takes stays loaded; labels and the turn as the default go with the path."""
    for version in (1, 2, 3):
        write(tmp_path, version)
    point(tmp_path / "previous", "1")
    point(tmp_path / "current", "2")
    paths = sorted([tmp_path / "previous", tmp_path / "current"], key=lambda path: path.name != first)
    running = start(load=loading, bundles=paths, admin_port=0)
    with running.admin() as admin:
        admin.set_label("standin", "1", "old")
        admin.set_label("standin", "2", "new")
    point(tmp_path / "previous", str(previous))
    point(tmp_path / "current", str(current))

    for _ in range(2):
        running.server.reloader.reload()

    expected = {str(version): [] for version in (previous, current)}
    expected[str(previous)].append("old")
    expected[str(current)].append("new")
    assert versions(running) == {v: sorted(labels) for v, labels in expected.items()}
    assert running.score(rows(1)).budget.version == str(current if first == "previous" else previous)
    assert len(running.series("softkin_detector_info")) == len(running.series("softkin_drift_rows")) == len(expected)
    assert running.sample("softkin_reloads_total", result="failed") == 0


def test_a_link_that_is_moved_while_it_is_read_mixes_no_two_bundles(start, tmp_path, loading, monkeypatch):
    """What it led to at first is served; the next reload finds the other."""
    path = tmp_path / "bundle"
    for version in (1, 2, 3):
        write(tmp_path, version)
    path.symlink_to("1")
    running = start(load=loading, bundles=(path,))
    with monkeypatch.context() as patch:
        read = bundle.read_manifest

        def move(where):
            found = read(where)
            path.unlink()
            path.symlink_to("3")
            return found

        patch.setattr(bundle, "read_manifest", move)
        path.unlink()
        path.symlink_to("2")
        running.server.reloader.reload()
    first = versions(running)

    running.server.reloader.reload()

    assert (first, versions(running)) == ({"2": []}, {"3": []})
    assert running.sample("softkin_reloads_total", result="failed") == 0


@pytest.fixture
def shared(start, tmp_path, loading):
    """A server of two links that came to hold version 2 together, a path of version 3, and one of another name."""
    for version in (1, 2, 3):
        write(tmp_path, version)
    standin_bundles.write(tmp_path / "other", "1", name="other")
    point(tmp_path / "a", "1")
    point(tmp_path / "b", "2")
    running = start(load=loading, bundles=[tmp_path / name for name in ("a", "b", "3", "other")])
    point(tmp_path / "a", "2")
    running.server.reloader.reload()
    return running


@pytest.mark.parametrize("name", ["new", "other"])
def test_a_version_that_another_path_holds_does_not_go_with_a_path_that_holds_another_name(shared, tmp_path, name):
    """Be that loaded already or not."""
    standin_bundles.write(tmp_path / "4", "1", name=name)
    point(tmp_path / "a", "4")

    shared.server.reloader.reload()

    assert versions(shared).keys() == {"2", "3"}
    assert versions(shared, name).keys() == {"1"}
    assert shared.sample("softkin_reloads_total", result="failed") == 0


def test_a_version_that_another_path_holds_does_not_go_with_a_path_that_holds_a_third_one(shared, tmp_path):
    """Which is loaded already, for its own path."""
    point(tmp_path / "a", "3")

    for _ in range(2):
        shared.server.reloader.reload()

    assert versions(shared).keys() == {"2", "3"}
    assert shared.sample("softkin_reloads_total", result="failed") == 0


def test_another_bundle_of_a_version_that_another_path_holds_too_is_refused(shared, tmp_path, rows):
    """Callers of the other path's version would get what its bundle does not hold."""
    standin_bundles.write(tmp_path / "again", "2", shift=7)
    point(tmp_path / "a", "again")

    shared.server.reloader.reload()

    assert shared.sample("softkin_reloads_total", result="failed") == 1
    assert shared.score(rows(1), detector="standin", version="2").outlier_score[0] == 15 + 2000


def test_a_path_whose_bundle_is_gone_keeps_what_it_held_when_another_path_leaves_it(shared, tmp_path):
    """It goes on serving it, and its own turn fails."""
    write(tmp_path, 4)
    point(tmp_path / "a", "4")
    point(tmp_path / "b", "nowhere")

    shared.server.reloader.reload()

    assert versions(shared).keys() == {"2", "3", "4"}
    assert shared.sample("softkin_reloads_total", result="failed") == 1
