"""Tokens and keys that come through a pipe: it is read once, and nobody waits for a second writer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from authority import Authority
from softkin.credentials import ServerCertificate
from softkin.tokens import TokenFile

SECONDS = 20


@pytest.fixture
def pipe(tmp_path):
    """Makes a named pipe into which somebody writes some bytes, once."""

    def make(content):
        path = tmp_path / "pipe"
        os.mkfifo(path)
        threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
        return path

    return make


def in_time(work):
    """What is returned; fails where nothing is."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found, "still waiting for a writer"
    return found[0]


def test_tokens_from_a_pipe_stay_as_they_are(pipe, caplog):
    """The calls of all wait for who looks again, those of health too."""
    now = [0.0]
    tokens = TokenFile(pipe(b"first\n"), clock=lambda: now[0])
    now[0] = 5.0

    assert in_time(lambda: (tokens.accepts("first"), tokens.accepts("second"))) == (True, False)
    assert caplog.messages == []


def test_a_key_from_a_pipe_stays_as_it_is(pipe, tmp_path):
    """Connections wait for who looks again, and so do scrapes."""
    files = Authority(tmp_path).issue("server")
    certificate = ServerCertificate(Path(files["tls_cert"]), pipe(Path(files["tls_key"]).read_bytes()))

    assert in_time(certificate.expires) > 0
