"""`softkin admin`: the admin service for people and scripts."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from softkin import cli
from softkin.admin_client import AdminClient


@pytest.fixture
def command(operated, capsys):
    """Runs `softkin admin`; gives exit status, output and errors."""

    def run(*arguments, target=None):
        status = cli.main(["admin", "--target", target or f"127.0.0.1:{operated.server.admin_port}", *arguments])
        out, err = capsys.readouterr()
        return status, out.strip(), err.strip()

    return run


def test_the_command_does_what_the_service_does(command, operated, rows):
    """And says in a line what has changed."""
    status, out, _ = command("load", "v2", "--label", "canary", "--label", "blue")
    assert status == 0
    assert out.startswith("standin 2 is loaded on cpu, digest ")
    assert out.endswith(", labels: blue, canary")
    status, out, _ = command("load", "v3")
    assert (status, out.partition(", digest ")[0]) == (0, "standin 3 is loaded on cpu")
    assert "labels" not in out
    assert command("unload", "standin", "3") == (0, "standin 3 is unloaded", "")
    assert command("label", "standin", "2", "stable") == (0, "stable is standin 2; before: 1", "")
    assert command("label", "standin", "1", "old") == (0, "old is standin 1; before: none", "")
    assert command("unlabel", "standin", "old") == (0, "no version of standin is old; before: 1", "")
    gone = "no version of standin is stable; before: 2; by default the version loaded last serves now"
    assert command("unlabel", "standin", "stable") == (0, gone, "")
    assert command("unload", "standin", "1") == (0, "standin 1 is unloaded", "")
    assert operated.score(rows(1)).budget.version == "2"


def test_a_shadow_that_was_compared_on_too_little_is_promoted_by_force_alone(command, operated, rows):
    """Whoever types it takes what comes; the server's refusal stays what it is without."""
    command("load", "v2", "--label", "shadow")

    status, out, err = command("label", "standin", "2", "stable")
    assert (status, out) == (1, "")
    assert "force" in err
    assert operated.score(rows(1)).budget.version == "1"

    assert command("label", "standin", "2", "stable", "--force") == (0, "stable is standin 2; before: 1", "")
    assert operated.score(rows(1)).budget.version == "2"


def test_without_an_action_there_is_nothing_to_do(command, capsys):
    """Wrong usage, which must not look like success to a script."""
    with pytest.raises(SystemExit) as e:
        command()

    assert e.value.code == 2
    assert "the following arguments are required: ACTION" in capsys.readouterr().err


def test_the_command_lists_what_is_loaded(command):
    """As columns for people, and as JSON for programs."""
    command("load", "v2", "--label", "canary")
    command("load", "v3")

    _, table, _ = command("list")
    _, lines, _ = command("list", "--json")

    listed = [json.loads(line) for line in lines.splitlines()]
    assert [(d["version"], d["labels"]) for d in listed] == [("1", ["stable"]), ("2", ["canary"]), ("3", [])]
    first, second, third = (d["digest"][:12] for d in listed)
    assert [re.split("  +", line) for line in table.splitlines()] == [
        ["detector", "version", "labels", "digest", "device", "calibration rows"],
        ["standin", "1", "stable", first, "cpu", "99"],
        ["standin", "2", "canary", second, "cpu", "99"],
        ["standin", "3", "-", third, "cpu", "99"],
    ]


@pytest.mark.parametrize("columns", ["80", "40"])
@pytest.mark.parametrize("version", ["1-r1-644ea420", "1." * 50])
def test_a_version_is_listed_whole(command, monkeypatch, columns, version):
    """It is typed after `label` and `unload`, so no terminal is too narrow for it."""
    monkeypatch.setenv("COLUMNS", columns)
    real = AdminClient.detectors
    monkeypatch.setattr(AdminClient, "detectors", lambda c: [dataclasses.replace(d, version=version) for d in real(c)])

    _, listed, _ = command("list")

    (line,) = listed.splitlines()[1:]
    assert line.split()[1] == version


def test_what_a_server_says_moves_no_cursor(command, monkeypatch):
    """As with the other commands: it may be anybody's."""
    real = AdminClient.detectors
    strange = {"name": "a\x1b[2Jb", "labels": ("[red]", ":dog:")}
    monkeypatch.setattr(AdminClient, "detectors", lambda c: [dataclasses.replace(d, **strange) for d in real(c)])

    _, out, _ = command("list")

    assert "a\\x1b[2Jb" in out
    assert "[red],:dog:" in out


def test_connection_options_may_come_last(operated, capsys):
    """As those of the other commands do; what came first still holds, and of what is given twice the last."""
    target = ["--target", f"127.0.0.1:{operated.server.admin_port}"]

    assert cli.main(["admin", "list", *target, "--timeout", "9"]) == 0
    assert cli.main(["admin", "--target", "127.0.0.1:1", "list", *target]) == 0
    assert "standin" in capsys.readouterr().out
    assert cli.main(["admin", "--timeout", "0", "list", *target]) == 1
    assert "--timeout: got 0.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("load", "nothing"), "softkin: error: "),
        (("load", "../outside"), "softkin: error: PATH: got '../outside', which leaves the bundle root"),
        (("load", "\udcff"), "softkin: error: PATH: got '\\udcff'; must be text that UTF-8 can spell"),
        (("load", "v2", "--label", "a b"), "softkin: error: --label: got 'a b'; 1 to 40 letters, digits, '-' or '_'"),
        (("load", "v2", "--label", "\udcff"), "softkin: error: --label: got '\\udcff'; must be text"),
        (("unload", "", "1"), "softkin: error: NAME: empty; the admin service takes no default, name it"),
        (("unload", "standin", "\udcff"), "softkin: error: VERSION: got '\\udcff'; must be text"),
        (("label", "standin", "1", "a b"), "softkin: error: LABEL: got 'a b'; 1 to 40 letters, digits, '-' or '_'"),
        (("label", "\udcff", "1", "stable"), "softkin: error: NAME: got '\\udcff'; must be text"),
        (("unlabel", "standin", "\udcff"), "softkin: error: LABEL: got '\\udcff'; must be text"),
        (
            ("unload", "standin", "1"),
            "softkin: error: version '1' is the only one of 'standin'; load another one first",
        ),
        (
            ("label", "standin", "7", "stable"),
            "softkin: error: no detector 'standin' version '7'; loaded: standin version 1",
        ),
        (("unlabel", "standin", "x"), "softkin: error: no version carries the label 'x'; labels: none"),
    ],
)
def test_the_command_fails_with_one_line(command, arguments, message):
    """Exit status 1, as all commands do; what is at fault is called as the usage calls it."""
    status, out, err = command(*arguments)

    assert (status, out) == (1, "")
    assert err.startswith(message)
    assert "\n" not in err


def test_the_command_tells_a_port_of_scores_from_an_admin_port(command, operated):
    """The commonest mistake has a message of its own."""
    status, _, err = command("load", "v2", target=operated.target)

    assert status == 1
    assert err.endswith("not an admin port; it is the one that the server was given as --admin-port")
