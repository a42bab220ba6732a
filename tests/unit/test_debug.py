from __future__ import annotations

from kdns import log
from kdns.plugins.debug import Debug
from tests.plugintest import new_site, refused, set_up


def test_debug_lines_are_on_as_long_as_a_configuration_asks_for_them() -> None:
    site = new_site()
    assert not set_up(Debug, "debug\ndebug", site).handles
    assert log.debugging()
    warehouse = site.process.warehouse
    warehouse.keep_only(site.taken)
    assert log.debugging()
    warehouse.keep_only(set())
    assert not log.debugging()


def test_it_takes_nothing() -> None:
    assert refused(Debug, "debug x") == "Wrong argument count or unexpected line ending after 'x'"
    assert refused(Debug, "debug {\nx\n}") == "unknown property 'x'"
    assert not log.debugging()
