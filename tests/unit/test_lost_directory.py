"""Commands that are started where the current directory has been removed, or replaced as a deployment does it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from softkin.console import lost_directory


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("softkin", ["serve", "bundle", "--port", "0", "--metrics-port", "0"]),
        ("softkin_training", ["fit", "--embeddings", "vectors.npz", "--out", "out"]),
        ("softkin_training", ["recalibrate", "bundle", "--data", "new.npz", "--out", "out"]),
    ],
    ids=["serve", "fit", "recalibrate"],
)
def test_a_current_directory_that_is_gone_is_told_in_a_line(tmp_path, module, arguments):
    """No traceback: nothing is wrong with the arguments."""
    run = f"import os, runpy, sys; os.rmdir({str(tmp_path)!r}); runpy.run_module({module!r}, run_name='__main__')"

    done = subprocess.run(
        [sys.executable, "-c", run, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    program = "softkin" if module == "softkin" else "softkin-train"
    said = f"{program}: error: the current directory has been removed; change to one that is there (cd)\n"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines(keepends=True)[-1] == said
    assert "Traceback" not in done.stderr


def test_a_file_that_is_missing_is_another_matter():
    """It comes out as it is."""
    error = FileNotFoundError("x")
    with pytest.raises(FileNotFoundError) as e:
        lost_directory(error)
    assert e.value is error
