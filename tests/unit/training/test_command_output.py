"""Where `softkin-train` prints to, what it says of itself, and what it says where a package is missing."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from softkin import __version__
from softkin.option_names import SERVICE_COMMANDS, TRAINING_COMMANDS
from softkin_training.cli import _parser, main

pytestmark = pytest.mark.training


def test_a_reader_who_leaves_ends_the_command_without_a_word():
    """`softkin-train ... | head`: no traceback, neither at once nor when the interpreter ends."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    program = "import sys; from softkin_training.cli import main; sys.exit(main())"

    command = [sys.executable, "-c", program, "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60, check=False)

    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("torch", ["train", "digits", "--out", "o"], "training"),
        ("onnx", ["fit", "--embeddings", "e.npz", "--out", "o"], "service"),
        ("onnx", ["recalibrate", "b", "--data", "d.npz", "--out", "o"], "service"),
        ("scipy", ["evaluate", "b", "--inliers", "i.npz", "--outliers", "o=o.npz", "--out", "o"], "evaluation"),
        ("sklearn", ["fit", "--embeddings", "e.npz", "--condense", "2", "--out", "o"], "training"),
    ],
    ids=["train", "fit", "recalibrate", "evaluate", "condense"],
)
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path, package, arguments, extra):
    """The script is there after a plain `pip install softkin`, torch is not; fit and two others do without."""
    np.savez(tmp_path / "e.npz", x_train=np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32))
    program = (
        f"import sys; sys.modules[{package!r}] = None; from softkin_training.cli import main; "
        f"sys.exit(main({arguments!r}))"
    )

    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    error = rf"softkin-train: error: this needs the Python package {package}[.a-z]*: pip install 'softkin\[{extra}\]'\n"
    assert re.fullmatch(error, done.stderr), done.stderr


def test_the_version_is_that_of_the_package(capsys):
    """As with `softkin --version`."""
    with pytest.raises(SystemExit) as stop:
        main(["--version"])

    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_option_comes_with_the_usage_of_its_command_and_the_nearest(capsys):
    """As `softkin` does."""
    with pytest.raises(SystemExit) as stop:
        main(["run", "digits", "--out", "x", "--sett", "training.epochs=1", "--qiet"])

    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        "softkin-train run: error: unrecognized arguments: --sett training.epochs=1 --qiet; did you mean --set? --help "
        "lists what there is\n"
    )


def test_an_abbreviation_is_no_option(capsys):
    """As of `softkin`: what is clear today would be refused once there are more options."""
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--embeddings", "e.npz", "--out", "x", "--nonconf", "density"])

    assert stop.value.code == 2
    assert "unrecognized arguments: --nonconf density; did you mean --nonconformity?" in capsys.readouterr().err


@pytest.mark.parametrize("command", SERVICE_COMMANDS)
def test_a_command_of_the_other_program_is_told_so(command, capsys):
    """The list of this program's commands would not say where it is."""
    with pytest.raises(SystemExit) as stop:
        main([command, "x"])

    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"softkin-train: error: argument COMMAND: got {command!r}, a command of softkin; run softkin {command}\n"
    )


def test_every_argument_of_every_command_is_explained():
    """A name alone, such as BUNDLE or DIR, does not say whether it is read or written."""
    [commands] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]

    unexplained = [
        f"{name} {action.dest}"
        for name, command in commands.choices.items()
        for action in command._actions
        if not action.help
    ]

    assert tuple(sorted(commands.choices)) == tuple(sorted(TRAINING_COMMANDS))
    assert unexplained == []
