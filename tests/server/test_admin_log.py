"""What the log keeps of the admin service: every label that moves, asked for or not, and who had it."""

from __future__ import annotations

import logging
import re

import pytest

from softkin.errors import SoftkinError


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # Version 1 served without a label, and keeps its turn by one.
        ([], ["version=1 label=stable previous=none"]),
        (["canary"], ["version=1 label=stable previous=none", "version=2 label=canary previous=none"]),
        (["stable"], ["version=2 label=stable previous=none"]),
    ],
)
def test_a_load_leaves_a_line_for_each_label_that_moved(operated, admin, caplog, labels, expected):
    """Also for the one that the version which serves is given so that it goes on serving."""
    with caplog.at_level(logging.INFO):
        admin.load("v2", labels)

    found = [line for record in caplog.records if (line := record.getMessage()).startswith("event=labelled ")]
    assert sorted(found) == [f"event=labelled detector=standin {line}" for line in expected]


def test_a_load_says_who_had_a_label_before(operated, admin, caplog):
    """As a label that is moved by itself does."""
    admin.load("v2")

    with caplog.at_level(logging.INFO):
        admin.load("v3", ["stable"])

    assert "event=labelled detector=standin version=3 label=stable previous=1" in caplog.text


def test_a_load_that_fails_leaves_a_line(operated, admin, caplog):
    """Whoever is woken by the alert on failed loads did not make the call, and has the log alone."""
    with caplog.at_level(logging.INFO), pytest.raises(SoftkinError, match="nowhere"):
        admin.load("nowhere")

    [line] = [m for record in caplog.records if (m := record.getMessage()).startswith("event=reload_failed ")]
    assert re.match(r"event=reload_failed path=\S+/nowhere error=\".+nowhere", line), line
