"""The commands over TLS, with client certificates and tokens, and a guarded server as it is really started."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from authority import Authority
from softkin import cli
from standin import StandIn

TOKEN = "a-token-for-the-command-line"


@pytest.fixture
def tokens(tmp_path):
    """A token file, whose second line is no token of the server."""
    path = tmp_path / "tokens"
    path.write_text(f"# first\n{TOKEN}\nanother\n")
    return path


@pytest.fixture
def identity(tmp_path):
    """An authority, and the flags of a client that it has certified and that has a token."""
    ca = Authority(tmp_path)
    files = ca.issue("client", "client.example")
    return ca, ["--tls-ca", ca.file, "--tls-cert", files["tls_cert"], "--tls-key", files["tls_key"]]


@pytest.fixture
def npz(tmp_path, rows):
    """Three rows."""
    path = tmp_path / "rows.npz"
    np.savez(path, x_test=rows(3))
    return path


def run(*arguments):
    """Exit status of a command."""
    return cli.main([str(a) for a in arguments])


def test_every_command_passes_its_identity_on(start, identity, tokens, npz, capsys):
    """score, drift and healthcheck, against a server that asks for certificate and token."""
    ca, flags = identity
    running = start(StandIn(), **ca.issue("server"), tls_client_ca=ca.file, token_file=tokens)
    flags = ["--target", running.target, *flags, "--token-file", tokens]

    assert [run("score", *flags, npz), run("drift", *flags), run("healthcheck", *flags)] == [0, 0, 0]
    out = capsys.readouterr().out
    assert "3 rows," in out
    assert f"{running.target} is serving" in out


def test_health_needs_no_token_and_scores_do(start, tokens, npz, capsys):
    """The message says which metadata is missing, and which option sends it."""
    running = start(StandIn(), token_file=tokens)

    assert run("healthcheck", "--target", running.target) == 0
    assert run("score", "--target", running.target, npz) == 1
    error = capsys.readouterr().err
    assert f"{running.target}: this call needs a valid token in its metadata" in error
    assert error.endswith("; give one that the server takes (token, or --token-file)\n")


def test_a_probe_names_the_server_that_it_reaches_by_another_name(start, tmp_path, capsys):
    """As in a pod, over loopback, with a certificate for the Service's name."""
    ca = Authority(tmp_path)
    running = start(StandIn(), **ca.issue("server", "softkin.prod.svc"))
    flags = ["--target", running.target, "--timeout", 5, "--tls-ca", ca.file]

    assert run("healthcheck", *flags, "--tls-server-name", "softkin.prod.svc") == 0
    assert run("healthcheck", *flags) == 1
    assert capsys.readouterr().err.endswith("; give the name that is in the server's certificate (--tls-server-name)\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-ca", "none.crt"], "--tls-ca: none.crt: cannot be read (No such file or directory)"),
        (["--token-file", "none"], "--token-file: none: cannot be read (No such file or directory)"),
        (["--tls-key", "a.key"], "--tls-key: given without --tls-ca; "),
    ],
)
def test_wrong_files_are_refused_in_one_line(capsys, flags, message):
    """Exit status 1, before anything connects."""
    assert run("healthcheck", "--target", "localhost:1", *flags) == 1

    err = capsys.readouterr().err
    assert err.startswith(f"softkin: error: {message}")
    assert err.count("\n") == 1


def test_a_token_in_plaintext_for_another_machine_is_refused(capsys, tokens):
    """The file is read, the token neither sent nor shown."""
    assert run("healthcheck", "--target", "softkin.example:50051", "--token-file", tokens) == 1

    err = capsys.readouterr().err
    assert (
        "error: --token-file: would travel to softkin.example:50051 in plaintext, for anyone to read; give --tls-ca, or"
        in err
    )
    assert TOKEN not in err


@pytest.fixture
def served(tmp_path, tiny, tokens):
    """`softkin serve` with all of its options in a file: the process and its port."""
    ca = Authority(tmp_path)
    files = ca.issue("server")
    config = tmp_path / "softkin.toml"
    config.write_text(
        f"""bundles = ["{tiny.path}"]
host = "127.0.0.1"
port = 0
metrics_port = 0
device = "cpu"
threads = 1
reflection = false
tls_cert = "{files["tls_cert"]}"
tls_key = "{files["tls_key"]}"
token_file = "{tokens}"
"""
    )
    command = [sys.executable, "-m", "softkin.cli", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    log = []
    for line in process.stderr:
        log.append(line)
        if "event=serving" in line:
            break
    yield process, log, ca
    process.kill()
    process.wait()
    process.stderr.close()
    watchdog.cancel()
    watchdog.join()


def test_a_server_that_is_configured_by_a_file_is_guarded(served, tiny, tokens, tmp_path, capsys):
    """Score, be refused without a token, stop: the way from file to wire, with a real bundle."""
    process, log, ca = served
    target = "127.0.0.1:" + re.search(r"event=serving .*\bport=(\d+)", "".join(log))[1]
    rows = tmp_path / "inliers.npz"
    np.savez(rows, x_test=tiny.inliers[:4])

    found = [
        run("score", "--target", target, "--tls-ca", ca.file, "--token-file", tokens, rows),
        run("score", "--target", target, "--tls-ca", ca.file, rows),
        run("healthcheck", "--target", target, "--tls-ca", ca.file),
    ]

    process.send_signal(signal.SIGTERM)
    log.extend(process.stderr)
    assert found == [0, 1, 0]
    assert "4 rows," in capsys.readouterr().out
    assert process.wait(timeout=60) == 0
    assert any("event=certificate file=" in line for line in log)
    assert TOKEN not in "".join(log)
