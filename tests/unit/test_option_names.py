"""Errors with the options that a user typed in place of the arguments they became."""

from __future__ import annotations

import inspect

import pytest

from softkin.admin_client import AdminClient
from softkin.cli import COMMANDS, build_parser, main
from softkin.client import Client
from softkin.errors import InvalidInputError, UnavailableError
from softkin.option_names import SCORE_OPTIONS, SERVICE_COMMANDS, TRAINING_COMMANDS, as_typed, unrecognized


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InvalidInputError("timeout_seconds", "got 0"), "--timeout: got 0"),
        (InvalidInputError("tls_key", "given without tls_ca; TLS"), "--tls-key: given without --tls-ca; TLS"),
        (InvalidInputError("version", "got '7'"), "--detector-version: got '7'"),
        (InvalidInputError("inputs", "there are no rows"), "inputs: there are no rows"),
        (UnavailableError("a:1: late; allow more time (timeout_seconds)"), "a:1: late; allow more time (--timeout)"),
        (UnavailableError("a:1: give tls_ca, and tls_cert"), "a:1: give --tls-ca, and --tls-cert"),
        (InvalidInputError("alpha", "needs guarantee = 'average'"), "--alpha: needs --guarantee average"),
    ],
)
def test_arguments_become_options_wherever_they_stand(error, text):
    """As the field at fault, and in a remedy."""
    assert as_typed(error, SCORE_OPTIONS) == text


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        ("score", (Client, Client.score)),
        ("drift", (Client,)),
        ("status", (AdminClient,)),
        ("healthcheck", (AdminClient,)),
        ("admin", (AdminClient, AdminClient.load, AdminClient.unload, AdminClient.set_label, AdminClient.remove_label)),
    ],
)
def test_whatever_argument_is_at_fault_its_command_takes_what_the_error_names(command, calls):
    """Who reads of `timeout_seconds` would look for an option of that name. `AdminClient` takes what connections do."""
    given = {name for call in calls for name in inspect.signature(call).parameters}
    _, parser = build_parser(command)
    actions = list(parser._actions)
    for several in [a.choices for a in actions if isinstance(a.choices, dict)]:
        actions += [a for each in several.values() for a in each._actions]
    taken = {name for a in actions for name in (*a.option_strings, a.metavar)}

    for name in sorted(given - {"self", "x", "force", "health_checks"}):
        named, _, _ = as_typed(InvalidInputError(name, "got 0"), COMMANDS[command].options).partition(": ")
        assert named in taken, f"{name} is told as {named}"


@pytest.mark.parametrize(
    "value", ["'tls_ca'", "/etc/tls_ca/ca.pem", "tls_ca.pem: cannot be read", "version", "label", "my-label = 'x'"]
)
def test_what_the_user_gave_stays_as_it_is(value):
    """Files and names may be called like arguments."""
    assert as_typed(InvalidInputError("alpha", f"got {value}"), SCORE_OPTIONS) == f"--alpha: got {value}"


def test_without_options_an_error_says_what_it_says():
    """As for a command that has none; a path of the user's may hold anything, two spaces beside each other too."""
    for text in ("is (tls_ca)", "two  spaces, ( ) and  = 'x'"):
        assert as_typed(InvalidInputError("tls_ca", text), {}) == f"tls_ca: {text}"


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (
            ["--neighbours", "5"],
            "unrecognized arguments: --neighbours 5; did you mean --neighbors? --help lists what there is",
        ),
        (["--alhpa=0.1"], "unrecognized arguments: --alhpa=0.1; did you mean --alpha? --help lists what there is"),
        (["--colour", "x"], "unrecognized arguments: --colour x; --help lists what there is"),
        (["neighbors"], "unrecognized arguments: neighbors; --help lists what there is"),
    ],
)
def test_an_unknown_option_comes_with_the_nearest(typed, text):
    """Where one is near; what is no option has none."""
    _, parser = build_parser("score")

    assert parser is not None
    assert unrecognized(parser, typed) == text


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["serve", "b", "--max-row", "8"], "unrecognized arguments: --max-row 8; did you mean --max-rows?"),
        (["score", "--target", "t:1", "f.npz", "--neighbor", "5"], "--neighbor 5; did you mean --neighbors?"),
        (["admin", "--target", "t:1", "label", "a", "1", "stable", "--forc"], "unrecognized arguments: --forc"),
        (["inspect", "--target", "t:1"], "; softkin status --target HOST:PORT shows what a server serves; --h"),
    ],
)
def test_an_abbreviation_is_no_option(typed, text, capsys):
    """What is clear today would be refused, or would mean something else, once there are more options."""
    with pytest.raises(SystemExit) as e:
        main(typed)

    assert e.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (["a", "--port", "1", "b"], "arguments: b; give every BUNDLE in one row, before or after the options; --help"),
        (["a", "--port", "1", "b", "--prot", "2"], "unrecognized arguments: b --prot 2; did you mean --port? --help"),
        (["a", "-p"], "unrecognized arguments: -p; --help"),
    ],
    ids=["apart", "with another mistake", "no bundle"],
)
def test_bundles_that_do_not_stand_together_are_told_where_to_stand(typed, text, capsys):
    """The parser takes them from one place of the line alone, and would call a bundle unknown."""
    with pytest.raises(SystemExit) as e:
        main(["serve", *typed])

    assert e.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_a_command_of_the_other_program_is_told_so(command, capsys):
    """The list of this program's commands would not say where it is."""
    with pytest.raises(SystemExit) as e:
        main([command, "--out", "x"])

    assert e.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"softkin: error: argument COMMAND: got {command!r}, a command of softkin-train; run softkin-train {command}\n"
    )


def test_what_neither_program_has_is_refused_with_what_there_is(capsys):
    """As argparse does."""
    with pytest.raises(SystemExit):
        main(["serv"])

    assert "invalid choice: 'serv' (choose from" in capsys.readouterr().err


def test_the_other_program_knows_every_command():
    """It cannot ask this one, which need not be imported for it."""
    assert tuple(COMMANDS) == SERVICE_COMMANDS
