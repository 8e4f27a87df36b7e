"""Which series of a candidate there are: at 0 nothing was compared yet; without them there is no candidate."""

from __future__ import annotations

import re
import urllib.request

import numpy as np
import pytest

from standin import StandIn
from standin_bundles import Shifted

DISPUTED = np.full((1, 2, 3), 2.5, np.float32)
"""No outlier for version 1, and one for a version with shift 10."""


@pytest.fixture
def serving(start):
    """A server whose version 1 is stable; 2 is loaded, and no candidate yet."""
    running = start(StandIn(), Shifted(version="2", shift=10), admin_port=0, shadow_share=1.0)
    with running.admin() as admin:
        admin.set_label("standin", "1", "stable")
    return running


@pytest.fixture
def admin(serving):
    """A client of its admin port."""
    with serving.admin() as client:
        yield client


def shown(running):
    """The series of candidates, as they are scraped, by name, version and result."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.server.metrics_port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^softkin_shadow_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[" ".join([name, of["version"], of.get("result", "")]).strip()] = float(value)
    return {k: v for k, v in found.items() if not k.startswith("rows_created")}


def rows_of(version, **counted):
    """The counters of a version."""
    return {f"rows_total {version} {r}": float(counted.get(r, 0)) for r in ("agree", "disagree", "dropped")}


def gauges_of(version):
    """The gauges of a version of which nothing is known."""
    return {f"{gauge} {version}": 0.0 for gauge in ("compared_rows", "disagreement", "p_value_difference")}


def test_a_candidate_shows_at_0_before_its_first_row(serving, admin):
    """An alert on what is not there never fires, and no one can tell why."""
    before = shown(serving)

    admin.set_label("standin", "2", "shadow")

    assert before == {}
    assert shown(serving) == {**rows_of("2"), **gauges_of("2")}


@pytest.mark.parametrize("label", ["remove", "move"])
def test_its_gauges_go_when_it_is_no_candidate_and_its_counters_stay(serving, admin, label):
    """Counters only ever rise: one that vanished would be taken for a restart when it comes back."""
    admin.set_label("standin", "2", "shadow")
    serving.score(DISPUTED)
    serving.until(lambda: shown(serving)["rows_total 2 disagree"] == 1)

    if label == "remove":
        admin.remove_label("standin", "shadow")
    else:
        admin.set_label("standin", "1", "shadow")

    assert shown(serving) == rows_of("2", disagree=1)


def test_a_version_that_serves_by_default_is_no_candidate(serving, admin):
    """Nothing will ever be compared with it: it has been promoted, and still carries the label."""
    admin.set_label("standin", "2", "shadow")
    assert shown(serving) == {**rows_of("2"), **gauges_of("2")}

    admin.set_label("standin", "2", "stable", force=True)

    assert shown(serving) == rows_of("2")
    serving.score(DISPUTED)
    admin.set_label("standin", "1", "shadow")
    serving.score(DISPUTED)
    serving.until(lambda: shown(serving)["rows_total 1 disagree"] == 1)
    assert shown(serving).items() >= rows_of("2").items()


def test_a_version_that_is_the_only_one_is_no_candidate(start):
    """There is nothing to compare it with."""
    running = start(StandIn(), admin_port=0)
    with running.admin() as client:
        client.set_label("standin", "1", "shadow")

    assert shown(running) == {}


def test_when_the_version_that_serves_changes_it_shows_at_0_again(serving, admin):
    """The comparison is with another one; what was counted stays, and is no measure of what the gauges stand on."""
    serving.server._registry.add(StandIn(version="3"))
    admin.set_label("standin", "2", "shadow")
    serving.score(DISPUTED)
    serving.until(lambda: shown(serving)["compared_rows 2"] == shown(serving)["disagreement 2"] == 1)

    admin.set_label("standin", "3", "stable")

    assert shown(serving) == {**rows_of("2", disagree=1), **gauges_of("2")}
