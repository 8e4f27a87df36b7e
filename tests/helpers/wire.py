"""Whole answers as they travel."""

from __future__ import annotations

from softkin.converters import share_to_proto
from softkin.scores import Scores, Share
from softkin.v1 import outlier_pb2 as pb


def scores_to_proto(scores: Scores) -> pb.ScoreResponse:
    """The answer that a server sends, with its stage times."""
    response = share_to_proto(Share(scores, None, scores.stage_seconds))
    response.stage_seconds.update(scores.stage_seconds)
    return response
