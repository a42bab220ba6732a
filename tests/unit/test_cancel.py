from __future__ import annotations

import asyncio

import pytest

from kdns.message import SERVFAIL, Query, Reply, failure
from kdns.plugins.cancel import Cancel
from tests.plugintest import LEASE, End, ask, refused, set_up


async def test_in_time() -> None:
    reply = await set_up(Cancel, "cancel").resolve(ask(), End())
    assert reply.lease == LEASE


async def test_too_late() -> None:
    cancelled = asyncio.Event()

    async def slow(query: Query) -> Reply:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Reply()

    reply = await set_up(Cancel, "cancel 10ms").resolve(ask(), slow)
    assert reply == failure(SERVFAIL, "context deadline exceeded", "cancel")
    assert cancelled.is_set()


async def test_a_timeout_of_the_chain_itself_is_not_the_deadline() -> None:
    async def raising(query: Query) -> Reply:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await set_up(Cancel, "cancel 1h").resolve(ask(), raising)


@pytest.mark.parametrize("text", ["cancel 5", "cancel 0s", "cancel -1s", "cancel 1s 2s", "cancel {\nx\n}"])
def test_what_is_wrong(text: str) -> None:
    assert refused(Cancel, text)
