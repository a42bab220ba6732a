"""Start, reload, lameduck, stop: what runs keeps running."""

import asyncio
import socket
from collections.abc import Sequence

import dns.message
import pytest

from kdns import limits
from kdns.corefile import CorefileError, Directive
from kdns.errors import KdnsError
from kdns.listen import stream
from kdns.listen.sockets import ListenError
from kdns.message import NOERROR, A, Query, Record, Reply
from kdns.plugin import Next, Plugin, Site
from kdns.server import Server
from tests.support import answers, ask, captured_log, free_port, installed, parse, serving

LIVES: list[str] = []
LINGER = asyncio.Event()


class Fixed(Plugin):
    """``fixed ADDRESS [slow|broken|raises]``: answers everything with one address."""

    name = "fixed"
    replayable = True
    inline = True

    def __init__(self, address: bytes, how: str, site: Site) -> None:
        self.address, self.how = address, how
        self.gate = asyncio.Event()
        self.kept = site.keep("fixed", (address,), lambda: Kept(address))

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        if uses[0].args[1:] == ("raises",):
            raise RuntimeError("a bug in setup")
        return cls(socket.inet_aton(uses[0].args[0]), uses[0].args[1] if len(uses[0].args) > 1 else "", site)

    async def start(self) -> None:
        LIVES.append(f"start {self.address[3]}")
        if self.how == "broken":
            raise RuntimeError("a bug in start")
        if self.how == "hangs":
            await asyncio.sleep(60)
        if self.how == "lingers":
            await LINGER.wait()

    async def stop(self) -> None:
        LIVES.append(f"stop {self.address[3]}")
        if self.how == "unstoppable":
            raise RuntimeError("a bug in stop")

    async def drain(self) -> None:
        if self.how == "unstoppable":
            raise RuntimeError("a bug in drain")

    async def resolve(self, query: Query, next: Next) -> Reply:
        if self.how == "slow":
            await self.gate.wait()
        return Reply(NOERROR, (Record(query.spelling, A, 30, self.address),), plugin=self.name)


class Kept:
    def __init__(self, address: bytes) -> None:
        self.address = address

    def close(self) -> None:
        LIVES.append(f"close {self.address[3]}")


@pytest.fixture(autouse=True)
def fixed_directive() -> object:
    LIVES.clear()
    LINGER.clear()
    with installed(Fixed):
        yield


def fixed(server: Server) -> Fixed:
    plugin = next(plugin for plugin in server.process.plugins if plugin.name == "fixed")
    assert isinstance(plugin, Fixed)
    return plugin


async def address(port: int, **how: object) -> str:
    return answers(await ask(port, "a.example.", **how))[0].split()[-1]  # type: ignore[arg-type]


async def test_udp_and_tcp_on_all_addresses() -> None:
    async with serving(". {\n fixed 10.0.0.1\n}\n") as server:
        port = server.ports[0]
        assert await address(port) == "10.0.0.1"
        assert await address(port, tcp=True) == "10.0.0.1"
        assert await address(port, host="127.0.0.9") == "10.0.0.1"
        assert server.banner() == [f".:{port}"]


async def test_a_good_reload_changes_the_answers_and_keeps_the_socket() -> None:
    text = ". {\n fixed 10.0.0.1\n reload\n}\n"
    async with serving(lambda: text) as server:
        port = server.ports[0]
        assert await address(port) == "10.0.0.1"
        assert not await server.reload()
        text = ". {\n fixed 10.0.0.2\n reload\n}\n"
        with captured_log() as log:
            assert await server.reload()
        assert log.matching("Reloading complete") and log.matching("Running configuration SHA512 = ")
        assert server.ports == [port] and await address(port) == "10.0.0.2"


@pytest.mark.parametrize(
    "bad",
    [
        ". {\n fixed 10.0.0.2",
        ". {\n nonsense\n}\n",
        ". {\n fixed 10.0.0.2 raises\n}\n",
        ". {\n fixed 10.0.0.2 broken\n}\n",
        ". {\n fixed 10.0.0.2\n}\n. {\n fixed 10.0.0.3\n}\n",
        ". {\n fixed 10.0.0.2\n}\nother.:OCCUPIED {\n fixed 10.0.0.3\n}\n",
        ". {\n fixed 10.0.0.2\n health 127.0.0.1:OCCUPIED\n}\n",
        "https://. {\n fixed 10.0.0.2\n}\n",
        "tls://. {\n fixed 10.0.0.2\n}\n",
    ],
)
async def test_a_bad_reload_changes_nothing(bad: str) -> None:
    text = ". {\n fixed 10.0.0.1\n}\n"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        async with serving(lambda: text) as server:
            port = server.ports[0]
            text = bad.replace("OCCUPIED", str(taken.getsockname()[1]))
            with captured_log() as log:
                assert not await server.reload()
                assert not await server.reload()
            assert len(log.matching("Corefile changed but reload failed: ")) in (1, 2)
            assert await address(port) == "10.0.0.1"
            assert "stop 1" not in LIVES and "close 1" not in LIVES
            assert b"coredns_reload_failed_total 0.0" not in server.process.metrics.expose()


async def test_an_unreadable_corefile_changes_nothing() -> None:
    def read() -> str:
        if failing:
            raise PermissionError(13, "Permission denied", "Corefile")
        return ". {\n fixed 10.0.0.1\n}\n"

    failing = False
    async with serving(read) as server:
        failing = True
        with captured_log() as log:
            assert not await server.reload()
        assert log.matching("Permission denied")
        assert await address(server.ports[0]) == "10.0.0.1"


async def test_queries_in_work_survive_a_reload() -> None:
    text = ". {\n fixed 10.0.0.1 slow\n}\n"
    async with serving(lambda: text) as server:
        port = server.ports[0]
        old = fixed(server)
        waiting = asyncio.create_task(address(port))
        while not server._endpoints[next(iter(server._endpoints))].waiting:
            await asyncio.sleep(0.001)
        text = ". {\n fixed 10.0.0.2\n}\n"
        assert await server.reload()
        assert await address(port) == "10.0.0.2"
        old.gate.set()
        assert await waiting == "10.0.0.1"


async def test_what_only_the_old_configuration_used_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETIRE", 0.01)
    text = ". {\n fixed 10.0.0.1\n}\n"
    async with serving(lambda: text) as server:
        text = ". {\n fixed 10.0.0.1\n}\nother. {\n fixed 10.0.0.2\n}\n"
        assert await server.reload()
        while "stop 1" not in LIVES:
            await asyncio.sleep(0.001)
        assert "close 1" not in LIVES
        text = ". {\n fixed 10.0.0.2\n}\n"
        assert await server.reload()
        while "close 1" not in LIVES:
            await asyncio.sleep(0.001)
        assert "close 2" not in LIVES
    assert "close 2" in LIVES


async def test_old_configurations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RETIRE", 60.0)
    number = 1
    async with serving(lambda: f". {{\n fixed 10.0.0.{number}\n}}\n") as server:
        for number in range(2, 2 + 3 * limits.RETIRING):  # noqa: B007 - the Corefile above reads it
            assert await server.reload()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(server._retired) <= limits.RETIRING
        assert await address(server.ports[0]) == f"10.0.0.{number}"


async def test_listeners_come_and_go() -> None:
    second = free_port()
    text = ". {\n fixed 10.0.0.1\n bind 127.0.0.1\n}\n"
    async with serving(lambda: text) as server:
        text += f"other.:{second} {{\n fixed 10.0.0.2\n bind 127.0.0.1\n}}\n"
        assert await server.reload()
        assert answers(await ask(second, "a.other."))[0].endswith("10.0.0.2")
        assert (await ask(second, "a.example.")).rcode() == 5
        whole, text = text, text.split("other.")[0]
        assert await server.reload()
        assert len(server.ports) == 1
        text = whole
        assert await server.reload()
        assert answers(await ask(second, "a.other."))[0].endswith("10.0.0.2")
        text = text.split("other.")[0]
        assert await server.reload()


async def test_any_port_is_one_that_is_free_for_udp_and_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    open_socket, asked = stream.open_socket, []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))

        def unlucky(host: str, port: int) -> socket.socket:
            asked.append(port)
            return open_socket(host, port or (taken.getsockname()[1] if len(asked) == 1 else 0))

        monkeypatch.setattr(stream, "open_socket", unlucky)
        async with serving(". {\n bind 127.0.0.1\n fixed 10.0.0.1\n}\n") as server:
            assert server.ports[0] != taken.getsockname()[1]
            assert answers(await ask(server.ports[0], "a.example.", tcp=True))
    assert len(asked) >= 2 and set(asked) == {0}, "the second may have been taken, too"


async def test_a_port_in_use_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = Server(lambda: parse(f".:{port} {{\n fixed 10.0.0.1\n}}\n"), 0)
        with pytest.raises(ListenError, match=rf"dns://:{port}.*0\.0\.0\.0 port {port}: Address already in use"):
            await server.start()
        await server.stop()


async def test_a_plugin_that_hangs_at_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLUGIN_START", 0.01)
    server = Server(lambda: parse(". {\n fixed 10.0.0.1 hangs\n}\n"), 0)
    with pytest.raises(KdnsError, match="fixed"):
        await server.start()
    assert LIVES[-2:] == ["stop 1", "close 1"]
    await server.stop()


async def test_conflicts_have_a_place() -> None:
    for text, problem in {
        "a. {\n fixed 10.0.0.1\n}\na. {\n fixed 10.0.0.1\n}\n": r"Corefile:4 - cannot serve dns://a.:0 - it is",
        "a. {\n fixed 10.0.0.1\n}\na. {\n fixed 10.0.0.1\n bind 127.0.0.1\n}\n": "Corefile:4 .*zone overlap listener",
        "a. {\n fixed 10.0.0.1\n acl\n}\n": "Corefile:3 - .*'acl' is CoreDNS's, but kdns does not have it yet",
        "a. {\n fixed 10.0.0.1\n acme\n}\n": "Corefile:3 - Error during parsing: Unknown directive 'acme'",
        "a. {\n fixed 10.0.0.1 raises\n}\n": "plugin/fixed: Corefile:2 - setup failed: RuntimeError",
    }.items():
        server = Server(lambda text=text: parse(text), 0)  # type: ignore[misc]
        with pytest.raises(CorefileError, match=problem):
            await server.start()
        await server.stop()


async def test_lameduck_answers_to_the_end_and_stopping_finishes_queries() -> None:
    port = free_port()
    health = free_port()
    text = f".:{port} {{\n fixed 10.0.0.1 slow\n health 127.0.0.1:{health} {{\n lameduck 200ms\n}}\n}}\n"
    async with serving(text) as server:
        plugin = fixed(server)
        waiting = asyncio.create_task(address(port))
        while not next(iter(server._endpoints.values())).waiting:
            await asyncio.sleep(0.001)
        with captured_log() as log:
            stopping = asyncio.create_task(server.stop())
            while not log.matching("Going into lameduck mode for 200ms"):
                await asyncio.sleep(0.001)
        late = asyncio.create_task(address(port))
        while next(iter(server._endpoints.values())).waiting < 2:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.3, plugin.gate.set)
        assert await waiting == await late == "10.0.0.1"
        await stopping


async def test_stragglers_are_answered_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while the last queries are waited for is answered at the end; what is cut off then is told, too."""
    text = "slow. {\n fixed 10.0.0.1 slow\n}\nfast. {\n fixed 10.0.0.2\n}\n"
    monkeypatch.setattr(limits, "GRACE", 1.0)
    with captured_log() as log, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as cut:
        async with serving(text) as server:
            port = server.ports[0]
            serving_there = next(iter(server._endpoints.values()))
            cut.connect(("127.0.0.1", port))
            cut.send(dns.message.make_query("a.slow.", "A").to_wire())
            while not serving_there.waiting:
                await asyncio.sleep(0.001)
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0.05)
            late = [asyncio.create_task(ask(port, "a.fast.")) for _ in range(3)]
            assert [answers(reply)[0].split()[-1] for reply in await asyncio.gather(*late)] == ["10.0.0.2"] * 3
            await stopping
    assert log.matching("[WARNING]") == [
        "[WARNING] 3 queries came after the end of lameduck: it was too short for some",
        "[WARNING] 1 queries are cut off unanswered",
    ]


async def test_who_has_answered_everything_tells_nothing_at_the_end() -> None:
    with captured_log() as log:
        async with serving(". {\n fixed 10.0.0.1\n}\n") as server:
            for tcp in (False, True):
                assert await address(server.ports[0], tcp=tcp) == "10.0.0.1"
            assert server.process.asked() == 2
    assert log.lines == []


async def test_a_plugin_that_cannot_stop_holds_up_nobody() -> None:
    with captured_log() as log:
        async with serving(". {\n fixed 10.0.0.1 unstoppable\n}\n"):
            pass
    assert log.matching("plugin/fixed: cannot stop: RuntimeError('a bug in stop')")
    assert log.matching("plugin/fixed: cannot drain: RuntimeError('a bug in drain')")


async def test_the_reload_directive_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.plugins.reload._LEAST_INTERVAL", 0.0)
    text = ". {\n fixed 10.0.0.1\n reload 20ms 0s\n}\n"
    async with serving(lambda: text) as server:
        for number in (2, 3):
            text = f". {{\n fixed 10.0.0.{number}\n reload 20ms 0s\n}}\n"
            while await address(server.ports[0]) != f"10.0.0.{number}":
                await asyncio.sleep(0.005)
        text = ". {\n fixed 10.0.0.4\n}\n"
        while await address(server.ports[0]) != "10.0.0.4":
            await asyncio.sleep(0.005)
        assert server._polling is None


async def test_kdns_asks_itself() -> None:
    async with serving("a. {\n fixed 10.0.0.1\n}\nb. {\n fixed 10.0.0.2\n}\n") as server:
        port = server.ports[0]
        assert answers(await ask(port, "x.a."))
        from kdns.message import Listener

        query = Query(b"\1b\0", A, 1, b"\1b\0", 1, 0, None, ("127.0.0.1", 1), Listener("dns://:0"), 20)
        assert (await server.process.ask(query)).answer[0].rdata == b"\x0a\0\0\2"
        gone = query.replace(listener=Listener("dns://:1"))
        assert "nothing listens" in (await server.process.ask(gone)).error


async def test_what_a_reload_has_begun_to_use_is_not_closed_under_it() -> None:
    text = ". {\n fixed 10.0.0.1\n}\n"
    async with serving(lambda: text) as server:
        text = ". {\n fixed 10.0.0.2\n}\n"
        assert await server.reload()
        text = ". {\n fixed 10.0.0.3 lingers\n}\n"
        reloading = asyncio.create_task(server.reload())
        while "start 3" not in LIVES:
            await asyncio.sleep(0.001)
        server._let_go(server._retired[0])
        LINGER.set()
        assert await reloading
        assert "close 3" not in LIVES and await address(server.ports[0]) == "10.0.0.3"


async def test_the_end_does_not_wait_for_a_reload_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.05)
    text = ". {\n fixed 10.0.0.1\n}\n"
    async with serving(lambda: text) as server:
        text = ". {\n fixed 10.0.0.2 hangs\n}\n"
        reloading = asyncio.create_task(server.reload())
        while "start 2" not in LIVES:
            await asyncio.sleep(0.001)
        await server.stop()
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)


async def test_a_corefile_that_stays_unreadable_is_told_of_once() -> None:
    text = ". {\n fixed 10.0.0.1\n}\n"
    async with serving(lambda: text) as server:
        text = ". {"
        with captured_log() as log:
            for _ in range(3):
                assert not await server.reload()
            assert len(log.matching("reload failed")) == 1
            text = ". {\n fixed {"
            assert not await server.reload()
            assert len(log.matching("reload failed")) == 2
