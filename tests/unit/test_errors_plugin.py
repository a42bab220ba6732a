"""The ``errors`` plugin: what is written about failures, and how much at most."""

from __future__ import annotations

import asyncio

import pytest

from kdns import limits, log
from kdns.message import REFUSED, SERVFAIL, Reply, failure
from kdns.plugin import Plugin, Site
from kdns.plugins.errors import Errors
from tests.plugintest import LEASE, Clock, End, ask, at_once, new_site, refused, set_up
from tests.support import captured_log

FAILED = failure(SERVFAIL, "read udp: i/o timeout", "forward")
LINE = "[ERROR] plugin/errors: 2 example.org. A: read udp: i/o timeout"
SUM = "errors like 'timeout' occurred in last"


def fail(plugin: Plugin, times: int = 1, reply: Reply = FAILED) -> None:
    for _ in range(times):
        at_once(plugin, ask("Example.org."), End(reply))


def move(site: Site, seconds: float) -> None:
    clock = site.process.now
    assert isinstance(clock, Clock)
    clock.now += seconds


def suppressed(site: Site) -> float:
    (sample,) = site.metrics.counter("kdns_errors_suppressed_total", "").samples()
    value: float = sample[1].value
    return value


@pytest.mark.parametrize("text", ["errors", "errors stdout", "errors {\nstacktrace\n}", "errors {\n}"])
def test_failures_are_written(text: str) -> None:
    plugin = set_up(Errors, text)
    with captured_log() as lines:
        fail(plugin)
        fail(plugin, reply=failure(REFUSED, "a\nb"))
        fail(plugin, reply=Reply(SERVFAIL))
    assert lines.lines == [LINE, "[ERROR] plugin/errors: 5 example.org. A: a\\x0ab"]


def test_leases() -> None:
    plugin = set_up(Errors, "errors")
    assert plugin.replayable
    assert at_once(plugin, ask(), End()).lease == LEASE
    with captured_log():
        reply = at_once(plugin, ask(), End(FAILED.leased(LEASE)))
    assert reply == FAILED.leased(LEASE.shrink(0.0))


@pytest.mark.parametrize(
    ("options", "hits", "written"),
    [
        ("", 3, ["[ERROR] 3"]),
        ("", 1, ["[ERROR] 1"]),
        ("warning", 2, ["[WARNING] 2"]),
        ("info", 2, ["[INFO] 2"]),
        ("debug", 2, []),
        ("show_first", 3, ["first", "[ERROR] 3"]),
        ("show_first", 1, ["first"]),
        ("warning show_first", 2, ["first as WARNING", "[WARNING] 2"]),
    ],
)
async def test_consolidate(options: str, hits: int, written: list[str]) -> None:
    plugin = set_up(Errors, f"errors {{\nconsolidate 1h timeout {options}\n}}")
    with captured_log() as lines:
        fail(plugin, hits)
        await plugin.stop()
    kinds = {"first": LINE, "first as WARNING": LINE.replace("ERROR", "WARNING")}
    expected = [kinds.get(word) or "{} plugin/errors: {} {} 1h0m0s".format(*word.split(), SUM) for word in written]
    assert lines.lines == expected


async def test_sums_come_when_their_time_is_over() -> None:
    plugin = set_up(Errors, "errors {\nconsolidate 10ms timeout\nconsolidate 1h udp\n}")
    with captured_log() as lines:
        fail(plugin, 2)
        while not lines.lines:
            await asyncio.sleep(0.001)
        fail(plugin)
        while len(lines.lines) < 2:
            await asyncio.sleep(0.001)
        await plugin.stop()
    assert lines.lines == [f"[ERROR] plugin/errors: {count} {SUM} 10ms" for count in (2, 1)]


async def test_what_no_pattern_matches_is_written() -> None:
    plugin = set_up(Errors, "errors {\nconsolidate 1h ^timeout\n}")
    with captured_log() as lines:
        fail(plugin)
    assert lines.lines == [LINE]


async def test_debug_sums_need_debug() -> None:
    plugin = set_up(Errors, "errors {\nconsolidate 1h timeout debug\n}")
    log.set_debug(True)
    try:
        with captured_log() as lines:
            fail(plugin)
            await plugin.stop()
    finally:
        log.set_debug(False)
    assert lines.lines == [f"[DEBUG] plugin/errors: 1 {SUM} 1h0m0s"]


async def test_a_flood_is_summed_up() -> None:
    site = new_site()
    plugin, another = set_up(Errors, "errors", site), set_up(Errors, "errors", site)
    most = limits.ERROR_LINES - 1
    with captured_log() as lines:
        fail(plugin, most)
        fail(another, 50)
        assert lines.lines == [LINE] * most
        assert suppressed(site) == 50
        # What was left out is told before anything else is.
        move(site, 1.0)
        fail(plugin)
        assert len(lines.lines) == most
        site.process.warehouse.keep_only(set())
        assert lines.lines[most:] == ["[ERROR] plugin/errors: 51 more errors in the last second"]
        fail(plugin)
    assert lines.lines[most + 1 :] == [LINE]


async def test_the_sum_of_a_flood_comes_by_itself() -> None:
    site = new_site()
    plugin = set_up(Errors, "errors", site)
    with captured_log() as lines:
        fail(plugin, limits.ERROR_LINES - 1)
        move(site, 0.99)
        fail(plugin, 7)
        while len(lines.lines) < limits.ERROR_LINES:
            await asyncio.sleep(0.001)
        assert lines.lines[-1] == "[ERROR] plugin/errors: 7 more errors in the last second"
        move(site, 0.02)
        fail(plugin, limits.ERROR_LINES - 1)
    assert len(lines.lines) == 2 * limits.ERROR_LINES - 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("errors\nerrors", "this plugin can only be used once per Server Block"),
        ("errors /var/log/x", "invalid log file: /var/log/x"),
        ("errors stdout x", "Wrong argument count or unexpected line ending after 'x'"),
        ("errors {\nx\n}", "unknown property 'x'"),
        ("errors {\nstacktrace x\n}", "Wrong argument count or unexpected line ending after 'x'"),
        ("errors {\nconsolidate 5s\n}", "Wrong argument count or unexpected line ending after '5s'"),
        ("errors {\nconsolidate 5s a b c d\n}", "Wrong argument count or unexpected line ending after 'd'"),
        ("errors {\nconsolidate 5 a\n}", 'time: missing unit in duration "5"'),
        ("errors {\nconsolidate 5s (\n}", "error parsing regexp: missing ): (: `(`"),
        ("errors {\nconsolidate 5s a fatal\n}", "unknown option in consolidate: fatal"),
        ("errors {\nconsolidate 5s a info error\n}", "multiple log levels specified in consolidate"),
        ("errors {\nconsolidate 5s a show_first info\n}", "log level must come before show_first in consolidate"),
    ],
)
def test_what_is_wrong(text: str, says: str) -> None:
    assert refused(Errors, text) == says
