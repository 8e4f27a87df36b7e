"""Every way in which another version comes to serve by default asks what was found out about a candidate."""

from __future__ import annotations

import numpy as np
import pytest

import standin_bundles
from softkin.errors import PreconditionError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn
from standin_bundles import Shifted

ROW = np.zeros((1, 2, 3), np.float32)


@pytest.fixture
def paths(tmp_path):
    """Bundles of versions 1 and 2 that never differ, as links `a` and `b`, and a third version."""
    for version in "123":
        standin_bundles.write(tmp_path / version, version)
    (tmp_path / "a").symlink_to("1")
    (tmp_path / "b").symlink_to("2")
    return tmp_path


@pytest.fixture
def serving(start, loading, paths):
    """A server whose default is version 2, because it came last; version 1 is the candidate."""
    options = {"shadow_share": 1.0, "shadow_min_rows": 20, "shadow_max_disagreement": 0.2}
    running = start(load=loading, bundles=(paths / "a", paths / "b"), admin_port=0, bundle_root=paths, **options)
    with running.admin() as admin:
        admin.set_label("standin", "1", "shadow")
    return running


def move(link, target):
    """Point a link elsewhere."""
    link.unlink()
    link.symlink_to(target)


def default(running):
    """The version that serves by default."""
    return running.score(ROW).budget.version


def labels(running):
    """Of every version that is loaded."""
    answer = running.stub.ListDetectors(pb.ListDetectorsRequest(), timeout=20)
    return {d.version: list(d.labels) for d in answer.detectors}


def unload(running, paths):
    """Without the last version the one before it serves."""
    with running.admin() as admin:
        admin.unload("standin", "2")


def label(running, paths):
    """The plain way."""
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")


def load(running, paths):
    """A bundle that is loaded already has its labels moved to it."""
    with running.admin() as admin:
        admin.load("1", ["canary", "stable"])


def reload(running, paths):
    """What the path of the default holds now is the candidate."""
    move(paths / "b", "1")
    running.server.reloader.reload()
    if default(running) != "1":
        raise PreconditionError("version '1' was compared with live traffic on fewer rows")


WAYS = [unload, label, load, reload]


@pytest.mark.parametrize("way", WAYS)
def test_a_candidate_that_was_not_compared_does_not_come_to_serve(serving, paths, way):
    """Nothing has changed then, labels neither."""
    before = labels(serving)

    with pytest.raises(PreconditionError, match="version '1' was compared with live traffic on"):
        way(serving, paths)

    assert (default(serving), labels(serving)) == ("2", before)


@pytest.mark.parametrize("way", WAYS)
def test_a_candidate_that_agrees_comes_to_serve_in_every_way(serving, paths, way):
    """Whoever is asked has to know the comparison with what serves now."""
    for _ in range(20):
        assert default(serving) == "2"
    agree = {"detector": "standin", "version": "1", "result": "agree"}
    serving.until(lambda: serving.sample("softkin_shadow_rows_total", **agree) == 20)

    way(serving, paths)

    assert default(serving) == "1"


@pytest.mark.parametrize(
    ("share", "advice"), [(0.1, "wait for more traffic"), (0.0, "give the server a shadow_share above 0")]
)
def test_a_refusal_tells_no_traffic_yet_from_a_server_that_compares_nothing(start, share, advice):
    """Who runs it with a share of 0 would wait for ever."""
    running = start(StandIn(), Shifted(version="2"), admin_port=0, shadow_share=share)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "shadow")

        with pytest.raises(
            PreconditionError, match=f"on 0 rows, and shadow_min_rows = 1000; {advice}, or set 'stable'"
        ):
            admin.set_label("standin", "2", "stable")


@pytest.mark.parametrize(("disagreeing", "advice"), [(0, "wait for more traffic"), (40, "find out why")])
def test_a_refusal_tells_too_few_rows_from_too_many_that_differ(start, disagreeing, advice):
    """Who has none that differ would look in vain for why they do."""
    running = start(StandIn(), Shifted(version="2", shift=10), admin_port=0, shadow_share=1.0, shadow_min_rows=40)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
        admin.set_label("standin", "2", "shadow")
        running.score(np.full((40, 2, 3), 2.5 if disagreeing else 0.0, np.float32))
        version = {"detector": "standin", "version": "2"}
        running.until(lambda: running.sample("softkin_shadow_compared_rows", **version) == 40)

        with pytest.raises(PreconditionError, match=f"disagrees on {disagreeing} of 40 rows .*; {advice}, or set 'st"):
            admin.set_label("standin", "2", "stable")
