"""The ranges of pyproject.toml beside the versions in deploy/, which are those that somebody has tried."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def requirements():
    """Those of the program and of all its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [r for r in map(Requirement, texts) if r.name != "softkin"]


def pins(file):
    """Versions by name."""
    lines = (ROOT / "deploy" / file).read_text().splitlines()
    required = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in required}


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_a_lower_bound_is_the_version_that_is_tested_as_the_oldest(requirement):
    """To change one is to change deploy/oldest.txt, and to run `make test-oldest`."""
    [bound] = [Version(s.version) for s in requirement.specifier if s.operator == ">="]

    assert bound == pins("oldest.txt")[canonicalize_name(requirement.name)]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_the_version_that_everything_is_tested_with_is_pinned_and_allowed(requirement):
    """An image is then made of the same today and in a year."""
    assert requirement.specifier.contains(pins("constraints.txt")[canonicalize_name(requirement.name)])
