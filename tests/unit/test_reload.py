"""reload: how often; what a reload does is tested with the server."""

import pytest

from kdns.corefile import CorefileError
from kdns.plugin import Process, Site
from kdns.plugins.reload import Reload
from tests.support import parse


def interval(line: str) -> float:
    [block] = parse(f". {{\n{line}\n}}\n").blocks
    plugin = Reload.setup(block.directives, Site(Process(), (b"\0",)))
    assert isinstance(plugin, Reload)
    return plugin.interval


def test_the_interval_is_shifted_by_half_the_jitter_at_most() -> None:
    for _ in range(100):
        assert 22.5 <= interval("reload") <= 37.5
        assert 8 <= interval("reload 10s 4s") <= 12
    assert interval("reload 10s 0s") == 10
    assert {interval("reload 60s 30s") for _ in range(10)} != {60}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("reload 1s", "interval value must be greater or equal to 2s"),
        ("reload 10s 500ms", "jitter value must be 0 or greater or equal to 1s"),
        ("reload 10", "missing unit"),
        ("reload 10s 5s 1s", "Wrong argument count"),
    ],
)
def test_what_is_wrong(line: str, problem: str) -> None:
    with pytest.raises(CorefileError, match=problem):
        interval(line)
