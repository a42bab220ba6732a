"""ready: who is not, and why."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from kdns.corefile import CorefileError, Directive
from kdns.plugin import Plugin, Site
from kdns.server import Server
from tests.support import captured_log, free_port, http_get, installed, parse, serving


class Moody(Plugin):
    name = "moody"
    inline = True
    reason = ""

    def __init__(self, mood: str = "") -> None:
        self.mood = mood

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        return cls(*uses[0].args)

    def unready(self) -> str:
        return f"{self.mood}{Moody.reason}" if Moody.reason else ""


@pytest.fixture(autouse=True)
def moody() -> Iterator[None]:
    Moody.reason = ""
    with installed(Moody):
        yield


async def test_not_ready_names_the_plugin_and_the_reason_once_in_the_log() -> None:
    port = free_port()
    async with serving(f". {{\n ready 127.0.0.1:{port}\n moody\n}}\n"):
        Moody.reason = "services: HTTP 403"
        with captured_log() as log:
            for _ in range(3):
                assert await http_get(port, "/ready") == (503, "moody\nmoody: services: HTTP 403")
        assert log.lines == ['[INFO] plugin/ready: Plugins not ready: "moody" (moody: services: HTTP 403)']
        Moody.reason = ""
        assert await http_get(port, "/ready") == (200, "OK")
        Moody.reason = "lost it"
        assert await http_get(port, "/ready") == (200, "OK")


async def test_the_same_plugin_in_several_server_blocks() -> None:
    port = free_port()
    one, two, three = free_port(), free_port(), free_port()
    text = f".:{one} {{\n ready 127.0.0.1:{port}\n moody a\n}}\n.:{two} {{\n moody b\n}}\n.:{three} {{\n moody a\n}}\n"
    async with serving(text):
        Moody.reason = ": HTTP 403"
        assert await http_get(port, "/ready") == (503, "moody\nmoody: a: HTTP 403\nmoody: b: HTTP 403")


async def test_monitored_continuously() -> None:
    port = free_port()
    async with serving(f". {{\n ready 127.0.0.1:{port} {{\n monitor continuously\n }}\n moody\n}}\n"):
        assert await http_get(port, "/ready") == (200, "OK")
        Moody.reason = "lost it"
        assert (await http_get(port, "/ready"))[0] == 503


async def test_shutting_down_is_not_ready() -> None:
    port = free_port()
    text = f". {{\n ready 127.0.0.1:{port}\n health 127.0.0.1:{free_port()} {{\n lameduck 300ms\n }}\n}}\n"
    async with serving(text) as server:
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        assert await http_get(port, "/ready") == (503, "Shutting down")
        await stopping


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ready nowhere", "missing port"),
        ("ready {\n monitor sometimes\n}", "monitor type 'sometimes' not supported"),
        ("ready\nready", "only be used once"),
        ("ready {\n x\n}", "unknown property 'x'"),
    ],
)
async def test_what_is_wrong_has_a_place(text: str, problem: str) -> None:
    server = Server(lambda: parse(f". {{\n{text}\n}}\n"), 0)
    with pytest.raises(CorefileError, match=f"plugin/ready: Corefile:[23] - .*{problem}"):
        await server.start()
    await server.stop()
