"""Paths that are links to versions: moved on, exchanged, moved while they are read, or left without a bundle."""

from __future__ import annotations

import pytest

import standin_bundles
from softkin import bundle
from softkin.v1 import outlier_pb2 as pb


def write(folder, version):
    """A bundle named by its version, which its scores tell too."""
    standin_bundles.write(folder / str(version), str(version), shift=1000 * version)


def versions(running):
    """Versions with their labels, as callers see them."""
    answer = running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20)
    return {d.version: list(d.labels) for d in answer.detectors}


MOVES = {"rolled on": (2, 3), "exchanged": (2, 1), "brought together": (2, 2)}


@pytest.mark.parametrize("first", ["previous", "current"])
@pytest.mark.parametrize(("previous", "current"), MOVES.values(), ids=MOVES)
def test_links_to_versions_can_be_moved_on_together(start, tmp_path, loading, rows, previous, current, first):
    """What one path gives up and another takes stays loaded; labels and the turn as the default go with the path."""
    for version in (1, 2, 3):
        write(tmp_path, version)
    links = {"previous": tmp_path / "previous", "current": tmp_path / "current"}

    def point(**versions):
        for name, version in versions.items():
            links[name].unlink(missing_ok=True)
            links[name].symlink_to(tmp_path / str(version))

    point(previous=1, current=2)
    paths = sorted(links.values(), key=lambda path: path.name != first)
    running = start(load=loading, bundles=paths, admin_port=0)
    with running.admin() as admin:
        admin.set_label("standin", "1", "old")
        admin.set_label("standin", "2", "new")
    point(previous=previous, current=current)

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


def test_a_path_whose_bundle_is_gone_keeps_what_it_held_when_another_path_leaves_it(start, tmp_path, loading):
    """Both held the same version; a path without a bundle goes on serving it, and its own turn fails."""
    for version in (1, 2, 3):
        write(tmp_path, version)
    links = [tmp_path / "previous", tmp_path / "current"]

    def point(*versions):
        for link, version in zip(links, versions, strict=True):
            link.unlink(missing_ok=True)
            link.symlink_to(tmp_path / str(version))

    point(1, 2)
    running = start(load=loading, bundles=links)
    point(2, 2)
    running.server.reloader.reload()
    point(3, 4)

    running.server.reloader.reload()

    assert versions(running).keys() == {"2", "3"}
    assert running.sample("softkin_reloads_total", result="failed") == 1
