"""The Corefiles that distributions ship load and serve unchanged, each in a pod of its own with all that it names."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e import pod
from tests.e2e.shipped import CASES
from tests.support import ROOT


async def test_shipped_corefiles() -> None:
    """All at once: most of their time goes by in lameduck."""
    if why := pod.impossible():
        pytest.skip(why)
    starting = asyncio.Semaphore(3)
    longest_first = sorted(CASES, key=lambda folder: -CASES[folder].lameduck)
    said = await asyncio.gather(*(serve(folder, starting) for folder in longest_first))
    assert not [text for text in said if text]


async def serve(folder: str, starting: asyncio.Semaphore) -> str:
    """Serve a folder and ask about it; what went wrong.  ``starting``: how many are busy at a time."""
    async with starting:
        process = await asyncio.create_subprocess_exec(
            *pod.command("shipped", folder), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        assert process.stdout is not None
        first = await process.stdout.readline()
    rest = await process.stdout.read()
    code = await process.wait()
    return "" if code == 0 and first == b"asked\n" and not rest else f"{folder}: {code} {(first + rest).decode()}"


def test_every_folder_is_served() -> None:
    folders = {path.name for path in (ROOT / "tests" / "corefiles").iterdir() if path.is_dir()}
    assert folders == CASES.keys()
