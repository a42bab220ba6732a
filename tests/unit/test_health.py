"""health: /health, lameduck, self-measurement."""

import asyncio

import pytest

from kdns.corefile import CorefileError
from kdns.server import Server
from tests.support import captured_log, free_port, http_get, parse, serving


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("health nowhere", "missing port"),
        ("health :8080 :8081", "Wrong argument count"),
        ("health {\n lameduck\n}", "Wrong argument count"),
        ("health {\n lameduck soon\n}", "soon"),
        ("health {\n limp 5s\n}", "unknown property 'limp'"),
    ],
)
async def test_what_is_wrong_has_a_place(text: str, problem: str) -> None:
    server = Server(lambda: parse(f". {{\n{text}\n}}\n"), 0)
    with pytest.raises(CorefileError, match=f"plugin/health: Corefile:[23] - .*{problem}"):
        await server.start()
    await server.stop()
