"""Errors about names of the operator's, which may be long, in any script, or in none."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from softkin.errors import InvalidInputError, NotFoundError, PreconditionError
from standin import StandIn, manifest


@pytest.mark.parametrize("letter", ["x", "é", "類", "😀", "%"])
def test_an_error_that_names_a_long_class_arrives_as_what_it_is(start, rows, monkeypatch, letter):
    """Headers hold 8 KiB, in which a letter may take twelve bytes; what exceeds them is told as an overload."""
    named = dataclasses.replace(manifest(), classes=("a", "b", letter * 2000))
    monkeypatch.setattr("standin.manifest", lambda *_: named)
    running = start(StandIn())

    with running.client() as client, pytest.raises(InvalidInputError) as e:
        client.score(rows(1), guarantee="class_conditional", alpha=0.02)

    assert str(e.value).startswith(f"alpha: got 0.02, but class '{letter * 100}")


def test_an_error_in_few_letters_is_cut_nowhere(start, rows):
    """Whatever the script."""
    running = start(StandIn())

    with (
        running.client(detector="類" * 70) as client,
        pytest.raises(NotFoundError, match=r"loaded: standin version 1$"),
    ):
        client.score(np.zeros((1, 2, 3), np.float32))


def test_an_error_that_names_a_folder_which_utf_8_cannot_spell_arrives(operated, admin, root):
    """The bundle is not where the path leads, but below it."""
    inside = os.path.join(os.fsencode(root), b"outer", b"\xff")
    os.makedirs(inside)
    os.rename(root / "v2/manifest.json", os.path.join(inside, b"manifest.json"))

    with pytest.raises(PreconditionError, match=r"outer/\?"):
        admin.load("outer")
