"""The scenarios of `make chaos`, in short: what happens and what is answered counts, times do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.catalogue import SCENARIOS
from tests.chaos.verdict import NotHere, Run, Scenario


@pytest.mark.parametrize("scenario", [one for one in SCENARIOS if one.quick], ids=lambda one: one.id)
async def test_scenario(scenario: Scenario, tmp_path: Path) -> None:
    try:
        verdict = await scenario.play(Run(tmp_path, scale=scenario.quick, quick=True))
    except NotHere as missing:
        pytest.skip(str(missing))
    print(", ".join(verdict.measured))
    assert not verdict.failed
