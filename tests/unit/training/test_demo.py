"""The demo, interrupted and told to write where it cannot."""

from __future__ import annotations

import os
import signal

import pytest

from softkin_training import demo as demo_module
from warm_processes import WarmProcess


@pytest.mark.slow
@pytest.mark.training
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_demo_ends_without_a_traceback(tmp_path, number):
    """To be told to end is no fault; the status is that of an interrupted `softkin`."""
    with WarmProcess(["--out", tmp_path], module="softkin_training.demo") as demo:
        demo.read_until("Train, export, build")
        os.kill(demo.pid, number)
        _, errors = demo.finish(60)

    assert (demo.status, errors) == (130, "")


@pytest.mark.training
@pytest.mark.parametrize(("out", "message"), [("", "it is empty"), ("file", "got 'file', which is a file")])
def test_a_folder_that_is_none_is_a_usage_error(tmp_path, monkeypatch, capsys, out, message):
    """An empty one would fill the current directory, a file would be found out below the first headline."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()

    with pytest.raises(SystemExit) as stop:
        demo_module.main(["--out", out])

    assert stop.value.code == 2
    assert f"argument --out: {message}; name a directory" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
