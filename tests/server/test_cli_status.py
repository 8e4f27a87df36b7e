"""`softkin status`: what a server serves and how much of it is flagged, at a glance."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from event_loops import run
from softkin import cli
from softkin.client import Client
from standin import StandIn

HEADERS = "detector  version  labels  digest        device  rows  flagged  alpha  drift"


@pytest.fixture
def running(start):
    """Two detectors: one has scored rows, most of them strange; the other none."""
    found = start(StandIn(), StandIn(name="other", version="3"), alpha=0.1)
    x = np.zeros((100, 2, 3), np.float32)
    x[:, 0, 0] = np.arange(100)
    x[20:] = 1000
    with found.client(detector="standin") as client:
        client.score(x)
    return found


def status(running, *more):
    """Exit status of the command."""
    return cli.main(["status", "--target", running.target, "--timeout", "9", *more])


def test_every_version_is_a_line_that_fits_a_terminal(running, capsys):
    """Which model, where it runs, what it saw: service, model and data on one screen."""
    assert status(running) == 0

    headers, second, first = capsys.readouterr().out.splitlines()
    assert headers == HEADERS
    assert max(map(len, (first, second))) <= 80
    name, version, labels, digest, device, rows, flagged, alpha, drift, row = first.split()
    assert (name, version, labels, digest, device) == ("standin", "1", "-", StandIn().digest[:12], "cpu")
    assert (rows, flagged, alpha, drift) == ("100", "80.00%", "0.1", "row")
    assert row.isdigit()
    assert second.split()[:3] + second.split()[4:] == ["other", "3", "-", "cpu", "0", "-", "0.1", "no"]


def test_programs_get_everything_as_json(running, capsys):
    """One object per version, with its drift watch."""
    assert status(running, "--json") == 0

    second, first = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["name"], first["drift"]["alarm"], first["drift"]["report"]["rows"]) == ("standin", True, 100)
    assert (second["name"], second["drift"]["alarm"], sum(second["drift"]["report"]["histogram"])) == (
        "other",
        False,
        0,
    )


def test_a_server_that_is_not_ready_is_shown_and_told(start, capsys):
    """Exit status 1, as that of healthcheck; one that drains still says what it serves."""
    running = start(StandIn(), drain_delay_seconds=600)
    stopping = threading.Thread(target=running.server.stop)
    stopping.start()
    with running.client() as client:
        running.until(lambda: not client.check_health())

    found = status(running)
    running.server.stop_now()
    stopping.join(timeout=20)

    assert found == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == HEADERS
    assert captured.err == f"softkin: error: {running.target} is not serving\n"


def test_a_server_that_starts_has_nothing_to_show_yet(start, capsys):
    """It answers, and is not serving."""
    running = start(StandIn(), ready=False)

    assert status(running) == 1

    captured = capsys.readouterr()
    assert captured.out.split() == HEADERS.split()
    assert captured.err == f"softkin: error: {running.target} is not serving\n"


def test_a_name_moves_no_cursor(start, capsys):
    """It comes from a bundle, which another may have made."""
    running = start(StandIn(name="a\x1b[2Jb"))

    assert status(running) == 0
    assert "a\\x1b[2Jb" in capsys.readouterr().out


def test_a_version_that_is_unloaded_while_it_is_asked_about_is_left_out(running, capsys, monkeypatch):
    """Between the list and its drift watch; the others are shown, and nothing has failed."""
    listed = Client.detectors

    def detectors(client):
        found = listed(client)
        running.server._registry.add(StandIn(version="2"))
        running.server._registry.remove("standin", "1")
        return found

    monkeypatch.setattr(Client, "detectors", detectors)

    assert status(running) == 0

    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["detector", "other"]
    assert captured.err == ""


def test_the_drift_of_every_version_can_be_asked_for_on_one_connection(running):
    """Whichever detector the client scores with."""

    async def use(client):
        return [(await client.drift(d)).detector for d in await client.detectors()]

    with running.client(detector="standin") as client:
        assert [client.drift(d).detector for d in client.detectors()] == ["other", "standin"]
        assert client.drift().detector == "standin"
    assert run(running, use) == ["other", "standin"]
