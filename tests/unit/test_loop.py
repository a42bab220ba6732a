"""The loop plugin: a loop is found, said, broken, and over when it is over; nothing ends the process."""

from __future__ import annotations

import asyncio
from typing import Any

import dns.edns
import pytest

from kdns import limits, message, name
from kdns.message import HINFO, SERVFAIL
from kdns.plugin import Process
from kdns.plugins import loop as loop_module
from kdns.plugins.loop import Loop
from tests.fakeupstream import Asked, FakeUpstream, answer_all, silent
from tests.plugintest import End, new_site, refused, set_up
from tests.plugintest import ask as ask_for
from tests.support import ask, captured_log, free_port, serving
from tests.upstreamtest import until

LATE = 4.5


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a tenth as long."""
    for constant in ("_AGAIN", "_ANSWER", "_STRAGGLERS", "_RECHECK", "_VALID"):
        monkeypatch.setattr(loop_module, constant, getattr(loop_module, constant) / 10)


def corefile(port: int, upstream: str, *more: str) -> str:
    lines = "\n".join((*more, "loop", f"forward . {upstream}"))
    return f".:{port} {{\nbind 127.0.0.1\n{lines}\n}}"


def test_takes_no_arguments_and_stands_once() -> None:
    assert refused(Loop, "loop foo") == "Wrong argument count or unexpected line ending after 'foo'"
    assert refused(Loop, "loop {\nfoo\n}") == "unknown property 'foo'"
    assert refused(Loop, "loop\nloop") == "this plugin can only be used once per Server Block"
    plugin = set_up(Loop, "loop")
    assert plugin.replayable and plugin.inline


async def test_everything_passes_through() -> None:
    plugin, end = set_up(Loop, "loop"), End()
    for kind in (message.A, HINFO):
        assert (await plugin.resolve(ask_for(kind=kind), end)).plugin == "end"


async def test_no_loop_no_line(quick: None) -> None:
    async with FakeUpstream() as fake:
        with captured_log() as lines:
            async with serving(corefile(free_port(), fake.address)) as server:
                (plugin,) = (plugin for plugin in server.process.plugins if isinstance(plugin, Loop))
                await until(lambda: plugin._task is not None and plugin._task.done())
                assert (await ask(server.ports[0], "a.test.")).rcode() == 0
        (probe,) = (asked for asked in fake.asked if asked.type == "HINFO")
    labels = probe.name.split(".")
    assert len(labels) == 3 and all(label.isdigit() for label in labels[:2])
    assert not lines.matching("plugin/loop")


async def test_a_server_that_forwards_to_itself() -> None:
    port = free_port()
    with captured_log() as lines:
        hosts = "hosts {\n192.0.2.9 here.test\nfallthrough\n}"
        async with serving(corefile(port, f"127.0.0.1:{port}", hosts)) as server:
            await until(lambda: bool(lines.matching("plugin/loop")))
            clock = asyncio.get_running_loop()
            began = clock.time()
            reply = await ask(port, "a.test.", edns=0)
            assert clock.time() - began < LATE
            assert reply.rcode() == SERVFAIL
            assert [option.code for option in reply.options if isinstance(option, dns.edns.EDEOption)] == [0]
            assert (await ask(port, "here.test.")).answer[0][0].to_text() == "192.0.2.9", "what is not forwarded lives"
            await asyncio.sleep(1.2)
            assert 'kdns_loop_detected{zone="."} 1.0' in server.process.metrics.expose().decode()
    (line,) = lines.matching("plugin/loop")
    assert line.startswith("[ERROR] plugin/loop: Loop (127.0.0.1:")
    assert f' -> 127.0.0.1:{port}) detected for zone ".", see https://coredns.io/plugins/loop#troubleshooting. ' in line
    assert line.split('Query: "HINFO ')[1].count(".") == 2


async def test_a_loop_that_outlives_a_reload_is_still_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETIRE", 0.5)
    port = free_port()
    text = corefile(port, f"127.0.0.1:{port}")
    with captured_log() as lines:
        async with serving(lambda: text) as server:
            await until(lambda: len(lines.matching("detected for zone")) == 1)
            text = corefile(port, f"127.0.0.1:{port}", "errors")
            assert await server.reload()
            await until(lambda: len(lines.matching("detected for zone")) == 2)
            await until(lambda: not server._retired and not server._stopping)
            assert 'kdns_loop_detected{zone="."} 1.0' in server.process.metrics.expose().decode()
            text = corefile(port, "127.0.0.1:1")
            assert await server.reload()
            await until(lambda: not server._retired and not server._stopping)
            assert "kdns_loop_detected{" not in server.process.metrics.expose().decode()


async def test_a_loop_over_another_server_that_goes_away() -> None:
    port = free_port()
    async with FakeUpstream() as fake:

        async def back(asked: Asked) -> None:
            reply = await ask(port, asked.name, asked.type, timeout=3)
            asked.send(asked.reply(rcode=message.rcode_text(reply.rcode())))

        fake.script = back
        with captured_log() as lines:
            async with serving(corefile(port, fake.address)) as server:
                await until(lambda: bool(lines.matching("detected for zone")))
                assert (await ask(port, "a.test.")).rcode() == SERVFAIL
                assert fake.count("a.test.") == 0, "nothing is forwarded any more"
                fake.script = answer_all
                await until(lambda: bool(lines.matching('Loop for zone "." is gone')))
                assert (await ask(port, "b.test.")).answer[0][0].to_text() == "192.0.2.1"
                assert 'kdns_loop_detected{zone="."} 0.0' in server.process.metrics.expose().decode()
        assert len(lines.matching("detected for zone")) == 1, "said once"


async def test_a_loop_without_the_plugin_ends_too() -> None:
    port = free_port()
    async with serving(f".:{port} {{\nbind 127.0.0.1\nforward . 127.0.0.1:{port}\n}}"):
        clock = asyncio.get_running_loop()
        for tcp in (False, True):
            began = clock.time()
            reply = await ask(port, f"a{tcp}.test.", tcp=tcp, edns=0)
            assert clock.time() - began < LATE
            assert reply.rcode() == SERVFAIL


async def test_a_name_that_everybody_knows_ends_nothing() -> None:
    """CVE-2026-26018: the probe's name could be guessed, and whoever asked for it thrice ended CoreDNS."""
    plugin, end = set_up(Loop, "loop"), End()
    assert isinstance(plugin, Loop)
    with captured_log() as lines:
        for n in range(10):
            await plugin.resolve(ask_for(f"{n}.{n}.", HINFO), end)
    assert not lines.lines and len(end.asked) == 10


async def test_the_zone_is_the_first_of_the_block() -> None:
    site = new_site("example.org.", "example.net.", process=Process())
    site.listens = ("dns://127.0.0.1:1",)
    plugin = set_up(Loop, "loop", site)
    assert isinstance(plugin, Loop)
    assert not await plugin._ask("127.0.0.1", 1), "nobody answers there"
    assert plugin._probe is not None and name.is_under(plugin._probe, name.from_text("example.org."))


async def test_a_zone_without_room_for_a_probe_is_not_probed() -> None:
    long = ".".join(["a" * 60] * 4) + "."
    plugin = set_up(Loop, "loop", new_site(long))
    assert isinstance(plugin, Loop)
    assert await plugin._ask("127.0.0.1", 1) and plugin._probe is None


@pytest.mark.parametrize(
    ("listens", "target"),
    [
        (("dns://:53",), ("127.0.0.1", 53)),
        (("tls://:853", "dns://[::1]:5353"), ("::1", 5353)),
        (("dns://192.0.2.1:53", "dns://192.0.2.2:53"), ("192.0.2.1", 53)),
        (("tls://:853",), None),
        (("dns://:0",), None),
        ((), None),
    ],
)
async def test_where_it_asks(listens: tuple[str, ...], target: Any) -> None:
    site = new_site()
    site.listens = listens
    plugin = set_up(Loop, "loop", site)
    assert isinstance(plugin, Loop)
    assert plugin._target() == target
    if target is None:
        await plugin.start()
        await until(lambda: plugin._task is not None and plugin._task.done())
        await plugin.stop()


async def test_probes_end_when_nobody_answers() -> None:
    async with FakeUpstream() as fake:
        fake.script = silent
        site = new_site()
        site.listens = (f"dns://{fake.address}",)
        plugin = set_up(Loop, "loop", site)
        assert isinstance(plugin, Loop)
        await plugin.start()
        await until(lambda: plugin._task is not None and plugin._task.done())
        probes = [asked.name for asked in fake.asked]
        await plugin.stop()
    assert 2 <= len(probes) == len(set(probes)), "a new name each time"


async def test_probes_end_when_others_answer_them() -> None:
    async with FakeUpstream() as fake:
        site = new_site()
        site.listens = (f"dns://{fake.address}",)
        plugin = set_up(Loop, "loop", site)
        assert isinstance(plugin, Loop)
        await plugin.start()
        await until(lambda: plugin._task is not None and plugin._task.done())
        assert fake.count() == 3
        await plugin.stop()


async def test_an_address_that_does_not_exist() -> None:
    plugin = set_up(Loop, "loop")
    assert isinstance(plugin, Loop)
    assert not await plugin._ask("fe80::1%nosuchif", 53)
