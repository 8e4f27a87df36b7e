"""A temporary folder that is full: what was to be written there, and the remedy."""

from __future__ import annotations

import pytest

from small_files import files_of_at_most
from softkin.bundle import read_bundle
from softkin.errors import DataError
from softkin_training.boundary import with_boundary
from softkin_training.build import build
from softkin_training.subject import Subject


def test_a_bundle_in_the_making_says_what_found_no_room(tiny, tmp_path, monkeypatch):
    """From the first file to the last; nothing stays, neither there nor where the bundle would have stood."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    widest = max(layer.dim for layer in read_bundle(tiny.path).manifest.layers)
    sizes = {
        "network": len(tiny.model) - 1,
        "representations": 4 * widest * len(tiny.bank) - 1,
        "bank": 4 * widest * len(tiny.bank) + 1,
    }
    assert sorted(sizes.values()) == list(sizes.values())
    for what, size in sizes.items():
        with (
            files_of_at_most(size),
            pytest.raises(
                DataError, match=rf"^{tmp_path}/\S+: cannot write the {what} \(.*too large.*\); make room there, or set"
            ),
        ):
            build(tmp_path / "b", tiny.model, tiny.spec, bank_rows=tiny.bank, calibration_rows=tiny.calibration)
    assert not list(tmp_path.iterdir())


def test_networks_that_are_only_looked_at_need_room_too(tiny):
    """To measure distances to boundaries, and to compare a bundle with other scores."""
    with files_of_at_most(100):
        with pytest.raises(DataError, match=r": cannot write the network \(File too large\); make room there"):
            with_boundary(tiny.model, tiny.bank)
        with pytest.raises(DataError, match=r": cannot write the network \(File too large\); make room there"):
            Subject(read_bundle(tiny.path))
