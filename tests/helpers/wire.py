"""Whole answers, and deadlines, as they travel."""

from __future__ import annotations

from typing import Any

from softkin.converters import share_to_proto
from softkin.scores import Scores, Share
from softkin.v1 import outlier_pb2 as pb


def scores_to_proto(scores: Scores) -> pb.ScoreResponse:
    """The answer that a server sends, with its stage times."""
    response = share_to_proto(Share(scores, None, scores.stage_seconds))
    response.stage_seconds.update(scores.stage_seconds)
    return response


def until_the_server_ends_it(seconds: float) -> dict[str, Any]:
    """Options of a call whose deadline only the server knows.

    The clock of a caller that has one, too, may end the call first, and the later its message has arrived, the longer
    before the server's own: on a busy machine so much that nothing tells this from a cancellation.
    """
    return {"metadata": (("grpc-timeout", f"{round(seconds * 1000)}m"),)}
