"""Answers as Python objects."""

from __future__ import annotations

import numpy as np

from softkin.scores import RowScores
from standin import StandIn
from ticket_cases import rows


def test_answers_can_be_compared_and_kept_in_sets():
    """One answer equals itself alone: of arrays, equality by value would be an array of its own."""
    x = np.zeros((2, 2, 3), np.float32)
    one, other = StandIn().score(x, num_neighbors=2), StandIn().score(x, num_neighbors=2)

    assert one == one
    assert one != other
    assert one.neighbors != other.neighbors
    assert len({one, other, one}) == 2


def test_an_answer_shows_in_one_line_how_many_of_its_rows_are_flagged():
    """At which alpha, by which guarantee and which detector; arrays of a million rows are not printed."""
    x = np.zeros((3, 2, 3), np.float32)
    x[1:] = 100.0

    found = repr(StandIn().score(x, alpha=0.1, guarantee="class_conditional"))

    assert found == "Scores(3 rows, 2 flagged at alpha=0.1 (class_conditional), standin)"


def test_slices_of_scores_join_to_what_they_were_cut_from():
    """Every array and the evidence, in the order of the rows; the times of all runs add up."""
    whole = StandIn().score_rows(rows(7), num_neighbors=2)

    joined = RowScores.concatenate([whole.take(slice(a, b)) for a, b in ((0, 2), (2, 3), (3, 7))])

    for name in ("nonconformity", "predicted_class", "outlier_score"):
        assert getattr(joined, name).tolist() == getattr(whole, name).tolist(), name
    assert joined.infer_seconds == 3 * whole.infer_seconds > 0
    assert (joined.neighbors.layers, joined.parts.names) == (whole.neighbors.layers, whole.parts.names)
    for name in ("ids", "labels", "distances", "shares"):
        assert getattr(joined.neighbors, name).tolist() == getattr(whole.neighbors, name).tolist(), name
    assert joined.parts.values.tolist() == whole.parts.values.tolist()
