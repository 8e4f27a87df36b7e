"""The configuration file: what beats it, what it refuses, and that --print-config writes one."""

from __future__ import annotations

import argparse
import os
import tomllib
from pathlib import Path

import pytest

from softkin import cli
from softkin.errors import InvalidInputError
from softkin.flags import add_flags, from_flags, print_config
from softkin.settings import ServerSettings

SECRET = "do-not-print-me"


def namespace(*arguments):
    """A command line, parsed."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file."""

    def write(text, name="softkin.toml"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_flag_beats_environment_beats_file_beats_default(monkeypatch, file):
    """Four options, each decided at another level."""
    path = file("port = 1\nworkers = 1\nmax_rows = 1\n")
    monkeypatch.setenv("SOFTKIN_PORT", "2")
    monkeypatch.setenv("SOFTKIN_WORKERS", "2")

    settings = from_flags(namespace("b", "--config", str(path), "--port", "3"))

    assert (settings.port, settings.workers, settings.max_rows, settings.max_neighbors) == (3, 2, 1, 100)


def test_the_file_may_be_named_by_the_environment_and_hold_the_bundles(monkeypatch, file):
    """So that a container needs no argument; a flag names another file."""
    monkeypatch.setenv("SOFTKIN_CONFIG", str(file('bundles = ["/a", "/b:c"]\nport = 1\n')))
    other = file("port = 2\n", "other.toml")

    settings = from_flags(namespace())

    assert (settings.bundles, settings.port) == ((Path("/a"), Path("/b:c")), 1)
    assert from_flags(namespace("/d", "--config", str(other))).port == 2
    assert ServerSettings(port=3).bundles == (Path("/a"), Path("/b:c"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_row = 1", "unknown key 'max_row'; did you mean 'max_rows'?"),
        ("max-rows = 1", "unknown key 'max-rows'; did you mean 'max_rows'?"),
        ("Port = 1", "unknown key 'Port'; did you mean 'port'?"),
        ("Q = 1", "unknown key 'Q'; did you mean '"),  # like none of them
        ("[tls]\ncert = 'a'", "unknown key 'tls'; did you mean 'tls_"),
        ("[softkin.serve]\nport = 1", "unknown key 'softkin'; did you mean '"),
        ("[serve]\nport = 1", "options stand in no table; take out the line [serve]"),
        ("config = 'other.toml'", "unknown key 'config'; did you mean"),
        ("port = ", "not a TOML file (Invalid value (at end of document))"),
        (b"host = '\xff'", "not a TOML file ('utf-8' codec"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_name(file, text, message):
    """A misspelt limit must not silently be no limit."""
    path = file(text)

    with pytest.raises(InvalidInputError) as e:
        from_flags(namespace("b", "--config", str(path)))

    assert str(e.value).startswith(f"config: {path}: {message}")


def test_the_mark_that_some_editors_write_first_is_read_over(file):
    """It is none of the text, and cannot be seen."""
    assert from_flags(namespace("b", "--config", str(file(b"\xef\xbb\xbfport = 1234\n")))).port == 1234


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """A server that came up with defaults instead would be the wrong server."""
    with pytest.raises(InvalidInputError, match=r"config: .*none.toml: cannot be read \(No such file"):
        from_flags(namespace("b", "--config", str(tmp_path / "none.toml")))


def test_a_wrong_value_is_refused_with_file_and_key(file):
    """Wherever a value stands, the message leads there."""
    path = file("port = 65536")

    with pytest.raises(InvalidInputError) as e:
        from_flags(namespace("b", "--config", str(path)))

    assert str(e.value) == f"{path}: port: got 65536; allowed: 0 to 65535"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host = 3", "host: got 3; it must be text, in quotes"),
        ("drift_state = 3", "drift_state: got 3; it must be a path, in quotes"),
        ("bundles = 3", 'bundles: got 3; it must be a list of paths: ["a", "b"]'),
        ("bundles = [3]", "bundles: got 3; it must be a path, in quotes"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_how_to_write_it(file, text, message):
    """In words of this file, not of the library that checks it."""
    path = file(text)

    with pytest.raises(InvalidInputError) as e:
        from_flags(namespace("--config", str(path)))

    assert str(e.value) == f"{path}: {message}"


def test_true_is_no_number(file):
    """Python would take it for 1."""
    path = file("port = true")

    with pytest.raises(InvalidInputError, match=rf"^{path}: port: got True; allowed: 0 to 65535$"):
        from_flags(namespace("b", "--config", str(path)))


def test_print_config_gives_every_option_with_its_value_and_origin(monkeypatch, file):
    """Flag, environment, file or default; what is not set is a comment."""
    path = file("workers = 7\nalpha = 0.25\n")
    monkeypatch.setenv("SOFTKIN_MAX_ROWS", "99")

    text = print_config(namespace("/a", "--config", str(path), "--port", "0"))

    lines = text.splitlines()
    for line in (
        f'# file: "{path}"',
        'bundles = ["/a"]  # flag BUNDLE',
        "port = 0  # flag --port",
        "max_rows = 99  # environment SOFTKIN_MAX_ROWS",
        "workers = 7  # file",
        "alpha = 0.25  # file",
        "reflection = true  # default",
        "# threads is not set (default)",
    ):
        assert line in lines
    assert all(any(name in line.split() for line in lines) for name in ServerSettings.model_fields if name != "config")


def test_print_config_is_a_file_that_means_the_same(file):
    """It parses as TOML, and a server that is given it has the same settings."""
    hostile = '/b \\ "q" # \u00e9\u2028\U0001f600\x7f\t\n'
    arguments = ["/a", hostile, "--alpha", "1e-5", "--log-level", "debug", "--tls-cert", "c", "--tls-key", "k"]
    before = from_flags(namespace(*arguments))

    path = file(print_config(namespace(*arguments)))

    after = from_flags(namespace("--config", str(path)))
    assert after.model_copy(update={"config": None}) == before
    assert tomllib.loads(path.read_text("utf-8"))["bundles"] == ["/a", hostile]
    again = print_config(namespace("--config", str(path)))
    assert tomllib.loads(again) == tomllib.loads(path.read_text("utf-8"))
    assert "default" not in again.split("\n", 1)[1].replace("(default)", "")


def test_a_file_that_can_be_read_once_is_enough():
    """As a shell makes one of what another command prints."""

    def piped(text):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as end:
            end.write(text)
        return reader

    with os.fdopen(piped("workers = 7")) as end:
        lines = print_config(namespace("b", "--config", f"/dev/fd/{end.fileno()}")).splitlines()
    with os.fdopen(piped("workers = -7")) as end, pytest.raises(InvalidInputError, match=r"/fd/\d+: workers: got -7; "):
        from_flags(namespace("b", "--config", f"/dev/fd/{end.fileno()}"))

    assert "workers = 7  # file" in lines


def test_print_config_prints_no_secret_and_starts_nothing(file, capsys):
    """Exit status 0, without a bundle, and with a token file that is named but not shown."""
    tokens = file(SECRET, "tokens")

    status = cli.main(["serve", "--print-config", "--token-file", str(tokens), "--tls-cert", "none", "--tls-key", "no"])

    out = capsys.readouterr().out
    assert status == 0
    assert tomllib.loads(out)["token_file"] == str(tokens)
    assert SECRET not in out
    assert "bundles = []  # default" in out


def test_print_config_refuses_what_serve_refuses(capsys):
    """It shows what would run, so it fails where running would."""
    with pytest.raises(SystemExit) as e:
        cli.main(["serve", "--print-config", "--port", "70000"])

    assert e.value.code == 2
    assert "--port: got '70000'; allowed: 0 to 65535" in capsys.readouterr().err


def test_a_file_that_is_wrong_is_told_by_the_variable_that_named_it(monkeypatch, file, capsys):
    """Whoever set it, perhaps in a unit file, has typed no option of the command line."""
    path = file("max_row = 1")
    monkeypatch.setenv("SOFTKIN_CONFIG", str(path))

    with pytest.raises(SystemExit) as e:
        cli.main(["serve", "b"])

    assert e.value.code == 2
    assert f"error: SOFTKIN_CONFIG: {path}: unknown key 'max_row'" in capsys.readouterr().err


def test_a_misspelt_variable_is_warned_of_and_what_kubernetes_sets_is_not(monkeypatch, capsys):
    """SOFTKIN_TOKENFILE would leave a server open that was meant to be guarded."""
    kubernetes = {
        "SOFTKIN_PORT": "tcp://10.0.0.1:50051",
        "SOFTKIN_SERVICE_HOST": "10.0.0.1",
        "SOFTKIN_SERVICE_PORT_GRPC": "50051",
        "SOFTKIN_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "SOFTKIN_PORT_50051_TCP_PROTO": "tcp",
        "SOFTKIN_CANARY_PORT": "tcp://10.0.0.2:50051",
    }
    for name, value in {**kubernetes, "SOFTKIN_TOKENFILE": "/tokens", "SOFTKIN_WORKERS": "3"}.items():
        monkeypatch.setenv(name, value)

    status = cli.main(["serve", "--print-config"])

    captured = capsys.readouterr()
    assert status == 0
    assert captured.err == (
        "softkin: warning: SOFTKIN_TOKENFILE is set and is no option; did you mean SOFTKIN_TOKEN_FILE?\n"
    )
    assert "workers = 3  # environment SOFTKIN_WORKERS" in captured.out
