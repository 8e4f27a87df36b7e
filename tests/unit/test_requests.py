"""How an array is split to fit into requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softkin.converters import Limits
from softkin.errors import InvalidInputError
from softkin.requests import ROW_LENGTH_BYTES, Requests, fill, split

LIMITS = Limits(
    max_rows=7,
    max_message_bytes=400,
    max_neighbors=3,
    max_pending_rows=100,
    max_pending_bytes=10_000,
    stream_window=4,
)


def head(name="d"):
    """What goes with the rows."""
    return Requests(name, "", "").head(0.05, None, None, None, 0)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 9), st.integers(450, 5000), st.integers(1, 90))
def test_every_request_fits_and_has_as_many_rows_as_do(rows, width, max_rows, max_message_bytes, name):
    """Up to the room that is kept for what tells their lengths."""
    x = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    limits = replace(LIMITS, max_rows=max_rows, max_message_bytes=max_message_bytes)

    parts = split(x, head("d" * name), limits)

    sizes = [fill(head("d" * name), part).ByteSize() for part in parts]
    np.testing.assert_array_equal(np.concatenate(parts), x)
    assert max(sizes) <= max_message_bytes
    assert max(map(len, parts)) <= max_rows
    for part, size in zip(parts[:-1], sizes[:-1], strict=True):
        assert len(part) == max_rows or size + x[:1].nbytes > max_message_bytes - ROW_LENGTH_BYTES


def test_rows_that_the_head_had_take_no_room():
    """A head is filled again and again."""
    x = np.zeros((12, 20), np.float32)
    used = fill(head(), x[:4])

    assert list(map(len, split(x, used, LIMITS))) == list(map(len, split(x, head(), LIMITS)))


def test_rows_of_no_bytes_are_split_by_their_number_alone():
    """For the server to refuse, as it does an array without rows."""
    assert list(map(len, split(np.zeros((9, 0)), head(), LIMITS))) == [7, 2]


@pytest.mark.parametrize("x", [np.zeros(()), np.zeros((0, 3))], ids=["a number", "no rows"])
def test_what_has_no_rows_is_left_as_it_is(x):
    """For the server to refuse, with its own words."""
    [found] = split(x, head(), LIMITS)

    assert found is x


@pytest.mark.parametrize(("spare", "fits"), [(ROW_LENGTH_BYTES, True), (-1, False)])
def test_a_row_for_which_there_is_just_room_travels_alone(spare, fits):
    """A larger one is refused with its size and the limit."""
    x = np.zeros((2, 100), np.float32)
    limit = fill(head(), x[:1]).ByteSize() + spare
    limits = replace(LIMITS, max_message_bytes=limit)

    if fits:
        assert list(map(len, split(x, head(), limits))) == [1, 1]
    else:
        with pytest.raises(InvalidInputError, match=f"one row has 400 bytes, .* max_message_bytes = {limit}"):
            split(x, head(), limits)


@pytest.mark.parametrize("asked", [0, 1, 1000, 2**32 - 1, 2**32, 10**30])
def test_more_neighbors_than_can_be_asked_for_are_asked_for_as_the_most_that_can(asked):
    """For the server to refuse, with its own limit."""
    request = Requests("d", "", "").head(None, None, None, None, asked)

    assert request.num_neighbors == min(asked, 0xFFFFFFFF)


def test_all_requests_are_to_the_version_that_is_named():
    """Also those for what it is and for what its drift watch has seen: of several detectors, or versions of one."""
    requests = Requests("d", "3", "stable")

    made = [requests.head(None, None, None, None, 0), requests.description(), requests.drift()]

    assert [(r.detector, r.version, r.label) for r in made] == [("d", "3", "stable")] * 3
