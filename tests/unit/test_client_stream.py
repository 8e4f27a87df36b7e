"""A stream as a client sees it, against a server that misbehaves."""

from __future__ import annotations

import numpy as np
import pytest

from softkin.client_stream import ClientStream
from softkin.errors import SoftkinError
from softkin.v1 import outlier_pb2 as pb
from standin import StandIn
from wire import scores_to_proto


def test_an_answer_to_no_request_is_a_fault_of_the_server():
    """Not of the caller's arrays: those that were asked for have their answers."""
    scores = StandIn().score(np.zeros((2, 2, 3), np.float32))
    answer = pb.StreamAnswer(response=scores_to_proto(scores))
    stream = ClientStream(pb.ScoreRequest(), lambda x: [x[:2], x[2:]], "here:1")
    assert len(list(stream.requests(np.zeros((4, 2, 3), np.float32)))) == 2
    answers = stream.scores(pb.ScoreStreamResponse(answers=[answer] * 3))

    assert len(next(answers)) == 4
    with pytest.raises(SoftkinError) as e:
        next(answers)

    assert str(e.value) == "here:1: the server sent an answer to no request of this stream"


def test_answers_are_joined_in_the_order_in_which_arrays_were_sent():
    """However many are under way: the first answers are those of the first array, as many as it took requests."""
    answers = [
        pb.StreamAnswer(response=scores_to_proto(StandIn().score(np.full((2, 2, 3), n, np.float32)))) for n in range(4)
    ]
    stream = ClientStream(pb.ScoreRequest(), lambda x: [x[i : i + 2] for i in range(0, len(x), 2)], "here:1")
    for n in (2, 6):
        list(stream.requests(np.zeros((n, 2, 3), np.float32)))

    found = [s.outlier_score.tolist() for a in answers for s in stream.scores(pb.ScoreStreamResponse(answers=[a]))]

    assert found == [[0, 0], [6, 6, 12, 12, 18, 18]]


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_a_stream_that_ends_well_has_answered_everything_that_was_sent(answered):
    """Fewer answers than arrays would go unnoticed, and be taken for those of other rows."""
    answer = pb.StreamAnswer(response=scores_to_proto(StandIn().score(np.zeros((2, 2, 3), np.float32))))
    stream = ClientStream(pb.ScoreRequest(), lambda x: [x], "here:1")
    for _ in range(2):
        assert len(list(stream.requests(np.zeros((2, 2, 3), np.float32)))) == 1
    stream.all_sent = True
    assert len(list(stream.scores(pb.ScoreStreamResponse(answers=[answer] * answered)))) == answered

    missing = "here:1: the server ended the stream before it had answered every array"
    assert str(stream.shortfall()) == ("None" if answered == 2 else missing)


def test_a_stream_that_ends_before_its_source_is_short_although_all_that_was_sent_is_answered():
    """The next array was about to be sent: its caller would take the end for that of the source, and miss it."""
    answer = pb.StreamAnswer(response=scores_to_proto(StandIn().score(np.zeros((2, 2, 3), np.float32))))
    stream = ClientStream(pb.ScoreRequest(), lambda x: [x], "here:1")
    assert len(list(stream.requests(np.zeros((2, 2, 3), np.float32)))) == 1
    assert len(list(stream.scores(pb.ScoreStreamResponse(answers=[answer])))) == 1

    found = stream.shortfall()

    assert str(found) == "here:1: the server ended the stream before it had answered every array"
    stream.error = OSError("the disk of the source")
    assert stream.shortfall() is stream.error
