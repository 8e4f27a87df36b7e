"""Runs what tests do with an AsyncClient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from softkin.async_client import AsyncClient

TIMEOUT_SECONDS = 60


def run(running: Any, use: Callable[[AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """What `use` makes of a client of a running server, in an event loop of its own; `options` are the client's."""

    async def main() -> Any:
        async with AsyncClient(running.target, **options) as client:
            return await asyncio.wait_for(use(client), TIMEOUT_SECONDS)

    return asyncio.run(main())
