"""health: /health, lameduck, self-measurement."""

import asyncio
from collections.abc import Callable

import pytest

from kdns.corefile import CorefileError
from kdns.plugin import Process
from kdns.plugins.health import Health
from kdns.server import Server
from tests.plugintest import new_site, set_up
from tests.support import Lines, ask, captured_log, free_port, http_get, parse, serving, until


async def test_ok_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.plugins.health._EVERY", 0.01)
    port = free_port()
    async with serving(f". {{\n health 127.0.0.1:{port}\n}}\n") as server:
        assert await http_get(port, "/health") == (200, "OK")
        while b"coredns_health_request_duration_seconds_count 0.0" in server.process.metrics.expose():
            await asyncio.sleep(0.01)
        assert b"coredns_health_request_failures_total 0.0" in server.process.metrics.expose()


async def test_failures_are_counted_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.plugins.health._EVERY", 0.01)
    port = free_port()
    with captured_log() as log:
        async with serving(f". {{\n health 127.0.0.1:{port}\n}}\n") as server:
            server._http[f"127.0.0.1:{port}"].close()
            while b"coredns_health_request_failures_total 0.0" in server.process.metrics.expose():
                await asyncio.sleep(0.01)
    assert log.matching(f'Local health request to "http://127.0.0.1:{port}/health" failed')


async def test_an_address_that_a_reload_took_away_is_asked_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old configuration lives on for its last queries, but its address is closed: that is no failure."""
    monkeypatch.setattr("kdns.plugins.health._EVERY", 0.01)
    first, second = free_port(), free_port()
    text = f". {{\n health 127.0.0.1:{first}\n}}\n"
    with captured_log() as log:
        async with serving(lambda: text) as server:
            text = f". {{\n health 127.0.0.1:{second}\n}}\n"
            assert await server.reload()
            assert server._retired
            asked = server.process.metrics.histogram("coredns_health_request_duration_seconds", "", ()).cell()
            until = sum(asked.counts) + 5
            while sum(asked.counts) < until:
                await asyncio.sleep(0.01)
            assert b"coredns_health_request_failures_total 0.0" in server.process.metrics.expose()
    assert not log.matching("failed")


async def test_a_request_that_a_reload_cuts_off_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was on its way when its address was closed."""
    monkeypatch.setattr("kdns.plugins.health._EVERY", 0.01)
    begun, cut = asyncio.Event(), asyncio.Event()
    first, second = free_port(), free_port()

    async def request(self: Health) -> None:
        if self._address.endswith(f":{first}"):
            begun.set()
            await cut.wait()
            raise ConnectionResetError

    monkeypatch.setattr(Health, "_request", request)
    text = f". {{\n health 127.0.0.1:{first}\n}}\n"
    with captured_log() as log:
        async with serving(lambda: text) as server:
            await begun.wait()
            text = f". {{\n health 127.0.0.1:{second}\n}}\n"
            assert await server.reload()
            cut.set()
            asked = server.process.metrics.histogram("coredns_health_request_duration_seconds", "", ()).cell()
            until = sum(asked.counts) + 2
            while sum(asked.counts) < until:
                await asyncio.sleep(0.01)
            assert b"coredns_health_request_failures_total 0.0" in server.process.metrics.expose()
    assert not log.matching("failed")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("health nowhere", "missing port"),
        ("health :8080 :8081", "Wrong argument count"),
        ("health {\n lameduck\n}", "Wrong argument count"),
        ("health {\n lameduck soon\n}", "soon"),
        ("health {\n lameduck 5s soon\n}", "soon"),
        ("health {\n lameduck 5s 4s\n}", "duration '4s' must be at least 5s"),
        ("health {\n lameduck 5s 6s 7s\n}", "Wrong argument count"),
        ("health {\n limp 5s\n}", "unknown property 'limp'"),
    ],
)
async def test_what_is_wrong_has_a_place(text: str, problem: str) -> None:
    server = Server(lambda: parse(f". {{\n{text}\n}}\n"), 0)
    with pytest.raises(CorefileError, match=f"plugin/health: Corefile:[23] - .*{problem}"):
        await server.start()
    await server.stop()


# --- lameduck that lasts as long as queries come ---------------------------------------------------------------------


async def lameduck(text: str, monkeypatch: pytest.MonkeyPatch, queries: Callable[[float], int]) -> tuple[float, Lines]:
    """How long it takes on a clock of its own, where so many queries have come by each second; and the log."""
    now = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("kdns.plugins.health.asyncio.sleep", sleep)
    site = new_site(process=Process(lambda: now))
    site.process.asked = lambda: queries(now - 100)
    plugin = set_up(Health, f"health 127.0.0.1:1 {{\n lameduck {text}\n}}", site)
    with captured_log() as log:
        await plugin.drain()
    return now - 100, log


@pytest.mark.parametrize(
    ("text", "last", "took"),
    [
        # Queries come at each quarter of a second until then.
        ("5s", 0, 5.0),
        ("5s", 60, 5.0),
        ("5s 20s", 0, 5.0),
        ("5s 20s", 2, 5.0),
        ("5s 20s", 4, 6.0),
        ("5s 20s", 9, 11.0),
        ("5s 20s", 60, 20.0),
        ("0s 20s", 0, 2.0),
        ("0s 20s", 3, 5.0),
        ("5s 5s", 60, 5.0),
        ("0s", 60, 0.0),
    ],
)
async def test_lameduck_ends_when_nobody_asks_any_more(
    text: str, last: float, took: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, log = await lameduck(text, monkeypatch, lambda second: int(min(second, last) * 4))
    assert found == pytest.approx(took)
    ends = log.matching("Lameduck ends after")
    assert len(ends) == (" " in text)
    if last == 9:
        assert ends == ["[INFO] plugin/health: Lameduck ends after 11s: 36 queries came meanwhile, the last 2s ago"]
    if ends and not last:
        assert ends[0].endswith("no query came meanwhile")


async def test_a_query_that_comes_in_lameduck_makes_it_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """With real sockets: queries over UDP, over TCP and out of the packet cache all count."""
    monkeypatch.setattr("kdns.plugins.health.QUIET", 0.4)
    monkeypatch.setattr("kdns.plugins.health.POLL", 0.02)
    text = f". {{\n bind 127.0.0.1\n whoami\n health 127.0.0.1:{free_port()} {{\n lameduck 10ms 20s\n }}\n}}\n"
    with captured_log() as log:
        async with serving(text) as server:
            port = server.ports[0]
            stopping = asyncio.create_task(server.stop())
            await until(lambda: bool(log.matching("Going into lameduck mode for 10ms")))
            for number in range(8):
                await ask(port, "example.org", tcp=bool(number % 2))
                await asyncio.sleep(0.2)
                assert not stopping.done()
            await stopping
    (line,) = log.matching("Lameduck ends after")
    assert "8 queries came meanwhile" in line and not log.matching("[WARNING]")
