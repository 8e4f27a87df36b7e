"""The largest batch that a detector can get is scored once before it serves: what that needs is there, or no start."""

from __future__ import annotations

import dataclasses

import pytest

from standin import StandIn

ROW_BYTES = 2 * 3 * 4


@pytest.mark.parametrize(
    ("limits", "row_bytes", "largest"),
    [
        ({}, ROW_BYTES, 256),
        ({"max_batch_rows": 7}, ROW_BYTES, 7),
        ({"max_rows": 9, "max_pending_rows": 9}, ROW_BYTES, 9),
        ({"max_message_bytes": 1024, "max_pending_bytes": 1024}, ROW_BYTES, 1024 // ROW_BYTES),
        ({"max_message_bytes": 1024, "max_pending_bytes": 1024}, 3 * ROW_BYTES, 1024 // (3 * ROW_BYTES)),
        ({"max_message_bytes": 1024, "max_pending_bytes": 1024}, 100 * ROW_BYTES, 1),
    ],
)
def test_what_may_be_pending_bounds_the_largest_batch(start, limits, row_bytes, largest):
    """Batches are made of admitted rows; at least one row is scored, be it larger than what may be pending."""
    detector = StandIn()
    shape = (row_bytes // ROW_BYTES, *detector.manifest.input_shape)
    detector.manifest = dataclasses.replace(detector.manifest, input_shape=shape)

    start(detector, **limits)

    assert detector.warm_up_rows == largest
