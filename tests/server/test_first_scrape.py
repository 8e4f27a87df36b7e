"""What a scrape shows before the first row: what begins at 0 loses nothing of what comes before the second scrape."""

from __future__ import annotations

import pytest

from standin import StandIn


@pytest.fixture
def running(start):
    """A server of two versions."""
    return start(StandIn(), StandIn(version="2"))


def test_histograms_of_a_detector_begin_at_0(running, rows):
    """Prometheus takes the first value of a series for what had been before: 100,000 rows at once would be none."""
    before = running.series("softkin_p_value_", "softkin_outlier_score_")

    running.score(rows(3), version="2")

    after = running.series("softkin_p_value_", "softkin_outlier_score_")
    assert set(before.values()) == {0.0}
    assert before.keys() == after.keys()


def test_histograms_of_stages_begin_at_0(running, rows):
    """All stages that there are, and no other."""
    before = running.series("softkin_stage_seconds_")

    running.score(rows(3), version="2")

    assert set(before.values()) == {0.0}
    assert before.keys() == running.series("softkin_stage_seconds_").keys()
