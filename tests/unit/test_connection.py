"""What a client says of calls that have ended, and of calls after its own end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from softkin import AsyncClient, Client
from softkin.errors import SoftkinError


def ended(code):
    """A call that ended so."""
    return SimpleNamespace(code=lambda: code, details=lambda: "gone", trailing_metadata=lambda: ())


@pytest.mark.parametrize("code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
@pytest.mark.parametrize("closed", [False, True])
def test_the_client_is_to_blame_where_it_was_closed_and_the_call_cancelled(code, closed):
    """A server that stops cancels calls, too, and a fault of its own stays one while the client closes."""
    with Client("127.0.0.1:1") as client:
        if closed:
            client.close()

        error = str(client._error(ended(code)))

    assert ("the client was closed" in error) == (closed and code is grpc.StatusCode.CANCELLED)


def test_a_client_is_closed_by_leaving_its_block():
    """Its threads and its connection end there."""
    with Client("127.0.0.1:1") as client:
        pass

    with pytest.raises(SoftkinError, match="the client is closed; make another one"):
        client.detector_info()


def test_an_asynchronous_client_is_closed_by_leaving_its_block_too():
    """In the same words."""

    async def use():
        async with AsyncClient("127.0.0.1:1") as client:
            pass
        await client.detector_info()

    with pytest.raises(SoftkinError, match="the client is closed; make another one"):
        asyncio.run(use())


def test_an_error_that_is_not_about_a_closed_client_comes_out():
    """It is a fault of ours, and must not pass for an answer."""

    def wrong(request, **options):
        raise ValueError("wrong")

    with Client("127.0.0.1:1") as client, pytest.raises(ValueError, match="wrong"):
        client._call(wrong, Empty())
