"""The client's side of a stream: arrays become requests, and their answers one answer for each array."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from softkin.arguments import as_rows
from softkin.client_errors import answer_error, counted_from
from softkin.converters import proto_to_scores
from softkin.errors import SoftkinError
from softkin.joining import join
from softkin.requests import fill
from softkin.scores import Scores
from softkin.v1 import outlier_pb2 as pb


class ClientStream:
    """Remembers how many requests each array takes; one thread may send while another reads.

    Args:
        head: what goes with every array; the stream fills it with rows.
        split: divides an array into the rows of its requests.
        target: names the server in errors.
    """

    def __init__(
        self, head: pb.ScoreRequest, split: Callable[[NDArray[np.generic]], list[NDArray[np.generic]]], target: str
    ) -> None:
        self._head = head
        self._split = split
        self._target = target
        self._requests_per_array: deque[int] = deque()
        self._parts: list[Scores] = []
        self.error: BaseException | None = None
        """Why there are no more arrays, if the source did not come to its end."""
        self.all_sent = False
        """Whether the source is at its end, and all that it gave has been sent."""

    def requests(self, x: NDArray[np.generic]) -> Iterator[pb.ScoreStreamRequest]:
        """The requests for the next array, each with rows of its own.

        Raises:
            InvalidInputError: the array cannot travel.
        """
        parts = self._split(as_rows(x))
        self._requests_per_array.append(len(parts))
        for rows in parts:
            yield pb.ScoreStreamRequest(request=fill(self._head, rows))

    def scores(self, response: pb.ScoreStreamResponse) -> Iterator[Scores]:
        """The answers for the arrays that this response completes.

        Raises:
            SoftkinError: what the server says instead of an answer, as the error of its own kind.
        """
        for answer in response.answers:
            if answer.HasField("error"):
                raise counted_from(answer_error(answer.error, self._target), sum(map(len, self._parts)))
            if not self._requests_per_array:
                raise SoftkinError(f"{self._target}: the server sent an answer to no request of this stream")
            self._parts.append(proto_to_scores(answer.response))
            # Its first request has been sent when its first answer is here, so the number is there.
            if len(self._parts) == self._requests_per_array[0]:
                self._requests_per_array.popleft()
                parts, self._parts = self._parts, []
                yield join(parts)

    def shortfall(self) -> BaseException | None:
        """What is wrong although the call has ended well: what ended the source, or that answers are missing."""
        if self.error is None and (self._requests_per_array or not self.all_sent):
            return SoftkinError(f"{self._target}: the server ended the stream before it had answered every array")
        return self.error
