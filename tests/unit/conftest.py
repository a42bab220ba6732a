"""What several modules need before each of their tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakeupstream import FakeUpstream
from tests.support import Lines, captured_log


@pytest.fixture
def log() -> Iterator[Lines]:
    """What is logged meanwhile."""
    with captured_log() as lines:
        yield lines


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    """An upstream."""
    async with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
async def other() -> AsyncIterator[FakeUpstream]:
    """A second one."""
    async with FakeUpstream() as upstream:
        yield upstream
