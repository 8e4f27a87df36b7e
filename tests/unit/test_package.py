"""What the packages show and what importing them costs."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softkin

HEAVY = ("grpc", "onnxruntime", "onnx", "torch", "google.protobuf", "prometheus_client")


def loaded_by(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(result.stdout.strip().splitlines()[-1]))


MATHS = ("mass", "conformal", "certificate", "selection", "verdicts", "calibration", "drift", "bundle")


@pytest.mark.parametrize("module", ["softkin", *(f"softkin.{name}" for name in MATHS)])
def test_importing_the_maths_loads_no_heavy_package(module):
    """NumPy is enough to read and write bundles and to compute p-values."""
    assert loaded_by(f"import {module}") == set()


def test_the_detector_needs_no_grpc_and_the_client_no_onnxruntime():
    """A client machine installs neither onnxruntime nor torch."""
    assert not loaded_by("import softkin; softkin.Detector") & {"grpc", "torch"}
    assert not loaded_by("import softkin; softkin.Client") & {"onnxruntime", "onnx", "torch"}


def test_no_module_of_the_service_needs_torch():
    """Each is imported, also the command line's and those that only a setting asks for."""
    names = [m.name for m in pkgutil.walk_packages(softkin.__path__, "softkin.")]

    assert {"softkin.cli", "softkin.tracing", "softkin.oip", "softkin.v1.outlier_pb2_grpc"} < set(names)
    assert "torch" not in loaded_by(f"import {', '.join(names)}")


@pytest.mark.parametrize("module", ["build", "cli", "expose", "fit", "fit_command", "recalibrate"])
def test_making_a_detector_of_any_classifier_needs_no_torch(module):
    """An ONNX file or bare embeddings are enough."""
    assert "torch" not in loaded_by(f"import softkin_training.{module}")


def test_public_names_are_those_listed():
    """`__all__` is sorted, and every name in it resolves."""
    assert sorted(softkin.__all__) == list(softkin.__all__)
    assert all(hasattr(softkin, name) for name in softkin.__all__)


def test_every_error_that_the_pages_tell_clients_to_expect_can_be_caught():
    """By a name of the package itself."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    table = page[page.index("## Status codes") : page.index("## First look")]

    assert set(re.findall(r"`(\w+Error)`", table)) <= set(softkin.__all__)


def test_no_module_is_longer_than_400_lines():
    """One idea per module; generated code excepted."""
    root = Path(__file__).parents[2]
    files = [p for d in ("service", "training", "tests", "benchmarks") for p in (root / d).rglob("*.py")]
    long = {str(p): n for p in files if "_pb2" not in p.name and (n := len(p.read_text().splitlines())) > 400}

    assert files
    assert long == {}


def test_a_session_writes_nothing_and_reports_to_nobody(tiny, tmp_path):
    """onnxruntime's official builds collect usage data under $HOME unless told not to."""
    code = f"import softkin, numpy as np; softkin.Detector.load({str(tiny.path)!r}).score(np.ones((1, 12), np.float32))"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"HOME": str(tmp_path)}

    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)

    assert list(tmp_path.rglob("*")) == []
