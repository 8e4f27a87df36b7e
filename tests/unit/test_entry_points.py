"""What starts the commands."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

COMMANDS = {"softkin": ["inspect", "x"], "softkin_training": ["fit", "--embeddings", "x", "--out", "y"]}
INTERRUPTED = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
from {package}.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["argparse", "cli", "numpy"])
@pytest.mark.parametrize("package", COMMANDS)
def test_ctrl_c_is_quiet_while_modules_are_being_imported(package, module):
    """That takes most of a start; a traceback would look like a fault."""
    name = f"{package}.cli" if module == "cli" else module
    command = [sys.executable, "-c", INTERRUPTED.format(package=package, module=name), *COMMANDS[package]]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("package", COMMANDS)
def test_a_package_can_be_run_as_its_command(package):
    """By `python -m`, where the command is on no path."""
    command = [sys.executable, "-m", package, "--version"]

    assert subprocess.run(command, capture_output=True, text=True, timeout=60).returncode == 0


@pytest.mark.parametrize(("command", "package"), [("softkin", "softkin"), ("softkin-train", "softkin_training")])
def test_the_installed_commands_start_there(command, package):
    """Started elsewhere they would import what takes long before they can be interrupted."""
    (found,) = entry_points(group="console_scripts", name=command)

    assert found.value == f"{package}.__main__:main"
