"""The forward plugin: its grammar, its lines one after another, its life over reloads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdns import limits, name
from kdns.corefile import CorefileError
from kdns.message import NOERROR, NXDOMAIN, REFUSED, SERVFAIL, A
from kdns.name import from_text, to_text
from kdns.plugin import Process, Site
from kdns.plugins.forward import Forward
from kdns.plugins.forward.options import Stub
from kdns.plugins.forward.targets import Target
from kdns.upstream import Upstream, UpstreamError
from tests.certificates import make_certificate
from tests.fakeupstream import Asked, FakeUpstream, after, answer_all, by_name, rcode, server_context, silent
from tests.plugintest import End, new_site, refused, set_up
from tests.plugintest import ask as ask_for
from tests.support import ask, captured_log, serving
from tests.upstreamtest import addresses, until


def stubs(text: str, site: Site | None = None) -> Sequence[Stub]:
    plugin = set_up(Forward, text, site)
    assert isinstance(plugin, Forward)
    return plugin._stubs


def stub(text: str) -> Stub:
    (only,) = stubs(text)
    return only


def targets(words: str, *lines: str) -> list[tuple[str, int]]:
    block = "{\n" + "\n".join(lines) + "\n}" if lines else ""
    return [(target.host, target.port) for target in stub(f"forward . {words} {block}").targets]


@contextlib.asynccontextmanager
async def running(text: str, process: Process | None = None) -> AsyncIterator[Forward]:
    """The plugin as it serves."""
    site = new_site(process=process or Process())
    plugin = set_up(Forward, text, site)
    assert isinstance(plugin, Forward)
    try:
        await plugin.start()
        yield plugin
    finally:
        await plugin.stop()
        if process is None:
            site.process.warehouse.keep_only(set())
            # Aborted connections are closed one round later.
            await asyncio.sleep(0.01)


# --- whom to ask -----------------------------------------------------------------------------------------------------


def test_addresses_in_all_spellings() -> None:
    assert targets("192.0.2.1") == [("192.0.2.1", 53)]
    assert targets("192.0.2.1:5353 dns://192.0.2.2 dns://192.0.2.3:54") == [
        ("192.0.2.1", 5353),
        ("192.0.2.2", 53),
        ("192.0.2.3", 54),
    ]
    assert targets("::1 [2001:db8::1]:5353 [2001:db8::2] fe80::1%eth0") == [
        ("::1", 53),
        ("2001:db8::1", 5353),
        ("2001:db8::2", 53),
        ("fe80::1%eth0", 53),
    ]
    assert targets("192.0.2.1 192.0.2.1:53 dns://192.0.2.1 192.0.2.1:54") == [("192.0.2.1", 53), ("192.0.2.1", 54)]


@pytest.mark.parametrize(
    ("word", "host", "port", "server_name"),
    [
        ("tls://9.9.9.9", "9.9.9.9", 853, ""),
        ("tls://9.9.9.9:854", "9.9.9.9", 854, ""),
        ("tls://9.9.9.9%dns.quad9.net", "9.9.9.9", 853, "dns.quad9.net"),
        ("tls://9.9.9.9%dns.quad9.net:854", "9.9.9.9", 854, "dns.quad9.net"),
        ("tls://[2620:fe::fe]:853", "2620:fe::fe", 853, ""),
        ("tls://[2620:fe::fe%dns.quad9.net]:854", "2620:fe::fe", 854, "dns.quad9.net"),
        ("tls://[2620:fe::fe%dns.quad9.net]", "2620:fe::fe", 853, "dns.quad9.net"),
        ("tls://fe80::1%example.com", "fe80::1", 853, "example.com"),
    ],
)
def test_tls_addresses(word: str, host: str, port: int, server_name: str) -> None:
    only = stub(f"forward . {word}")
    assert only.targets == (Target(host, port, True, server_name),)
    settings = only.settings(only.targets[0])
    assert settings.tls is not None and settings.tls.server_name == server_name
    assert (settings.host, settings.port) == (host, port)


def test_tls_servername_is_for_all_tls_upstreams_without_one() -> None:
    only = stub("forward . tls://192.0.2.1 192.0.2.2 {\ntls_servername dns.example\ntls\n}")
    first, second = (only.settings(target) for target in only.targets)
    assert first.tls is not None and first.tls.server_name == "dns.example"
    assert second.tls is None
    assert refused(Forward, "forward . tls://127.0.0.1%example.net:854 {\ntls_servername foo\n}") == (
        "both forward ('foo') and proxy level ('example.net') TLS servernames are set for upstream proxy "
        "'tls://127.0.0.1:854'"
    )


def test_files_like_resolv_conf(tmp_path: Path) -> None:
    conf, empty = tmp_path / "resolv.conf", tmp_path / "empty.conf"
    conf.write_text("search a b\noptions ndots:5\n# nameserver 192.0.2.9\nnameserver 192.0.2.1\nnameserver ::1 # x\n")
    empty.write_text("# nameserver 192.0.2.1\n")
    assert targets(str(conf)) == [("192.0.2.1", 53), ("::1", 53)]
    assert targets(f"{empty} {conf} 192.0.2.1") == [("192.0.2.1", 53), ("::1", 53)]
    assert refused(Forward, f"forward . {empty}") == "no valid upstream addresses found"
    with captured_log() as lines:
        conf.write_text("nameserver fec0::bad::1\nnameserver 192.0.2.1\n")
        assert targets(str(conf)) == [("192.0.2.1", 53)]
    assert lines.lines == [f"[WARNING] plugin/forward: {conf}: nameserver 'fec0::bad::1' is not an IP address"]
    assert (
        refused(Forward, f"forward . {tmp_path}/none")
        == f'failed to open file "{tmp_path}/none": no such file or directory'
    )
    many = tmp_path / "many.conf"
    many.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(100)))
    assert refused(Forward, f"forward . {many}") == f"more than {limits.UPSTREAM_ADDRESSES} upstream addresses: 100"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("forward", "Wrong argument count or unexpected line ending after 'forward'"),
        ("forward .", "Wrong argument count or unexpected line ending after '.'"),
        ("forward bad..name 192.0.2.1", "unable to normalize 'bad..name'"),
        ("forward . unix:///tmp/x", "'unix' is not supported as a destination protocol in forward: unix:///tmp/x"),
        (
            "forward . grpc://192.0.2.1",
            "'grpc' is not supported as a destination protocol in forward: grpc://192.0.2.1",
        ),
        (
            "forward . https://192.0.2.1",
            "'https://192.0.2.1': kdns does not have DNS over HTTPS upstreams yet; use tls://",
        ),
        ("forward . dns://", 'invalid address: "dns://"'),
        ("forward . 192.0.2.1:dns", "192.0.2.1:dns: address dns: invalid port"),
        ("forward . 192.0.2.1:99999", "192.0.2.1:99999: address 99999: invalid port"),
        ("forward . no..name", 'not an IP address, file, or valid domain: "no..name"'),
        ("forward . host.example:dns", "'dns' is not an integer"),
        ("forward . " + " ".join(f"192.0.2.{n}" for n in range(16)), "more than 15 TOs configured: 16"),
    ],
)
def test_lines_that_are_refused(line: str, reason: str) -> None:
    assert refused(Forward, line) == reason


def test_zones() -> None:
    assert [to_text(each.zone) for each in stubs("forward Example.ORG 192.0.2.1\nforward . 192.0.2.1")] == [
        "example.org.",
        ".",
    ]
    with captured_log() as lines:
        assert to_text(stub("forward 10.9.3.0/18 127.0.0.1").zone) == "0.9.10.in-addr.arpa."
    assert lines.lines == [
        "[WARNING] plugin/forward: Unsupported CIDR notation: '10.9.3.0/18' expands to multiple zones. "
        "Using only '0.9.10.in-addr.arpa.'."
    ]


def test_what_a_line_covers() -> None:
    only = stub("forward example.org 192.0.2.1 {\nexcept sub.example.org 10.0.0.0/8\nexcept example.org\n}")
    assert not only.covers(from_text("example.com."))
    assert not only.covers(from_text("a.sub.example.org."))
    assert not only.covers(from_text("www.example.org."))
    assert only.covers(from_text("example.org.")), "its own name is never excepted"
    everything = stub("forward . 192.0.2.1 {\nexcept cluster.local\n}")
    assert everything.covers(name.ROOT) and everything.covers(from_text("x.test."))
    assert not everything.covers(from_text("a.cluster.local."))


# --- options ---------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    only = stub("forward . 192.0.2.1")
    settings = only.settings(only.targets[0])
    assert (settings.expire, settings.max_age, settings.max_idle, settings.max_fails) == (10.0, 0.0, 0, 2)
    assert (settings.probe_every, settings.probe_domain, settings.probe_recursion) == (0.5, name.ROOT, True)
    assert not settings.probe_tcp and settings.source == "" and settings.tls is None
    group = only.group
    assert (group.policy, group.max_concurrent, group.max_attempts, group.read_timeout) == ("random", 0, None, 2.0)
    assert not (group.force_tcp or group.prefer_udp or group.failfast or group.failover)
    assert not (only.next_rcodes or only.next_on_nodata or only.resolvers or only.excepted)


def test_every_option(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    only = stub(
        f"""forward . 192.0.2.1 tls://192.0.2.2 {{
            except a.test b.test
            force_tcp
            prefer_udp
            expire 20s
            max_age 1m
            max_idle_conns 7
            read_timeout 500ms
            max_fails 5
            max_connect_attempts 3
            doh_method GET
            tls {certificate} {key} {certificate}
            tls_servername dns.example
            policy round_robin
            health_check 1s no_rec domain Check.Example
            max_concurrent 1000
            next NXDOMAIN servfail
            next_on_nodata
            failfast_all_unhealthy_upstreams
            failover SERVFAIL REFUSED
            source_address 127.0.0.1
            resolver 192.0.2.53 [2001:db8::53]:5353
        }}"""
    )
    settings = only.settings(only.targets[1])
    assert (settings.expire, settings.max_age, settings.max_idle, settings.max_fails) == (20.0, 60.0, 7, 5)
    assert (settings.probe_every, settings.probe_recursion, settings.probe_tcp) == (1.0, False, True)
    assert settings.probe_domain == from_text("check.example.") and settings.source == "127.0.0.1"
    assert settings.tls is not None
    assert (settings.tls.certificate, settings.tls.authorities) == (str(certificate), str(certificate))
    assert settings.tls.server_name == "dns.example" and settings.tls.digest
    group = only.group
    assert (group.policy, group.max_concurrent, group.max_attempts, group.read_timeout) == ("round_robin", 1000, 3, 0.5)
    assert group.force_tcp and group.prefer_udp and group.failfast
    assert group.failover == {SERVFAIL, REFUSED}
    assert only.next_rcodes == {NXDOMAIN, SERVFAIL} and only.next_on_nodata
    assert only.resolvers == (("192.0.2.53", 53), ("2001:db8::53", 5353))
    assert only.excepted == (from_text("a.test."), from_text("b.test."))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_tls_files(count: int, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    site = new_site()
    site.root = str(tmp_path)
    words = {
        0: [],
        1: [certificate.name],
        2: [certificate.name, key.name],
        3: [certificate.name, key.name, certificate.name],
    }
    (only,) = stubs(f"forward . tls://192.0.2.1 {{\ntls {' '.join(words[count])}\n}}", site)
    tls = only.server.tls
    assert tls is not None
    assert tls.certificate == (str(certificate) if count > 1 else "")
    assert tls.key == (str(key) if count > 1 else "")
    assert tls.authorities == (str(certificate) if count in (1, 3) else "")


def test_changed_tls_files_are_another_server(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    line = f"forward . tls://192.0.2.1 {{\ntls {tmp_path}/localhost.crt\n}}"
    before = stub(line)
    assert before.settings(before.targets[0]) == stub(line).settings(before.targets[0])
    make_certificate(tmp_path)
    assert before.settings(before.targets[0]) != stub(line).settings(before.targets[0])


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("bogus", "unknown property 'bogus'"),
        ("except", "Wrong argument count or unexpected line ending after 'except'"),
        ("except bad..name", "zone is not a valid domain name: bad..name"),
        ("force_tcp yes", "Wrong argument count or unexpected line ending after 'yes'"),
        ("prefer_udp yes", "Wrong argument count or unexpected line ending after 'yes'"),
        ("next_on_nodata yes", "Wrong argument count or unexpected line ending after 'yes'"),
        ("failfast_all_unhealthy_upstreams 1", "Wrong argument count or unexpected line ending after '1'"),
        ("expire 10", 'time: missing unit in duration "10"'),
        ("expire -1s", "duration '-1s' must be at least 0s"),
        ("max_age 5s", "max_age (5s) must not be less than expire (10s)"),
        ("max_idle_conns -3", "-3 is less than 0"),
        ("read_timeout 0s", "read_timeout must be positive: 0s"),
        ("max_fails", "Wrong argument count or unexpected line ending after 'max_fails'"),
        ("max_fails x", "'x' is not an integer"),
        ("max_fails 4294967296", "4294967296 is not in range [0, 4294967295]"),
        ("max_connect_attempts many", "'many' is not an integer"),
        ("max_concurrent -4", "-4 is less than 0"),
        ("doh_method PUT", "doh_method must be either POST or GET"),
        ("policy foo", "unknown policy 'foo'"),
        ("health_check", "Wrong argument count or unexpected line ending after 'health_check'"),
        ("health_check 1s domain", "Wrong argument count or unexpected line ending after 'domain'"),
        ("health_check 1s domain bad..name", "health_check: invalid domain name bad..name"),
        ("health_check 1s often", "health_check: unknown option often"),
        ("next", "Wrong argument count or unexpected line ending after 'next'"),
        ("next NOSUCH", "NOSUCH is not a valid rcode"),
        ("failover NOERROR", "NoError cannot be used in failover"),
        ("source_address 192.0.2", "invalid IP address: 192.0.2"),
        ("source_address fe80::1%eth0", "invalid IP address: fe80::1%eth0"),
        ("resolver", "Wrong argument count or unexpected line ending after 'resolver'"),
        ("resolver dns.example", 'resolver must be an IP address or IP:port: "dns.example"'),
        ("tls a b c d", "Wrong argument count or unexpected line ending after 'd'"),
        ("tls /none/a /none/b", "could not load TLS cert: open /none/a: no such file or directory"),
        ("tls /dev/null", "could not load TLS cert: NO_CERTIFICATE_OR_CRL_FOUND"),
    ],
)
def test_options_that_are_refused(option: str, reason: str) -> None:
    assert refused(Forward, f"forward . 192.0.2.1 {{\n{option}\n}}") == reason


# --- asking ----------------------------------------------------------------------------------------------------------


async def test_forwards_what_it_covers_and_passes_on_the_rest(fake: FakeUpstream) -> None:
    end = End()
    async with running(f"forward example.org {fake.address}") as plugin:
        assert addresses(await plugin.resolve(ask_for("www.example.org."), end)) == ["192.0.2.1"]
        reply = await plugin.resolve(ask_for("www.example.com."), end)
    assert reply.plugin == "end" and reply.lease.until > 0, "the lease of others is left alone"
    assert [to_text(query.name) for query in end.asked] == ["www.example.com."]
    assert plugin.replayable and plugin.inline


async def test_lines_are_tried_in_their_order(fake: FakeUpstream, other: FakeUpstream) -> None:
    text = f"forward example.org {fake.address} {{\nexcept sub.example.org\n}}\nforward org {other.address}"
    async with running(text) as plugin:
        for qname in ("example.org.", "a.example.org.", "a.sub.example.org.", "a.org."):
            await plugin.resolve(ask_for(qname), End())
    assert set(fake.names) == {"example.org.", "a.example.org."}
    assert set(other.names) == {"a.sub.example.org.", "a.org."}


async def test_next_hands_on_to_the_following_line(fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = rcode("NXDOMAIN")
    text = f"forward . {fake.address} {{\nnext NXDOMAIN\n}}\nforward . {other.address}"
    async with running(text) as plugin:
        assert addresses(await plugin.resolve(ask_for("a.test."), End())) == ["192.0.2.1"]
        fake.script = rcode("REFUSED")
        assert (await plugin.resolve(ask_for("b.test."), End())).rcode == REFUSED
        await fake.stop()
        reply = await plugin.resolve(ask_for("c.test."), End())
    assert reply.rcode == SERVFAIL and reply.error, "no answer is no rcode"
    assert set(other.names) == {"a.test."}


async def test_the_last_line_hands_on_to_nobody(fake: FakeUpstream) -> None:
    fake.script = rcode("NXDOMAIN")
    end = End()
    async with running(f"forward . {fake.address} {{\nnext NXDOMAIN\n}}") as plugin:
        assert (await plugin.resolve(ask_for(), end)).rcode == NXDOMAIN
    assert not end.asked


async def test_what_no_following_line_covers_goes_to_the_next_plugin(fake: FakeUpstream, other: FakeUpstream) -> None:
    fake.script = rcode("NXDOMAIN")
    end = End()
    async with running(f"forward . {fake.address} {{\nnext NXDOMAIN\n}}\nforward org {other.address}") as plugin:
        assert (await plugin.resolve(ask_for("a.test."), end)).plugin == "end"
    assert len(end.asked) == 1 and other.count() == 0


async def test_next_on_nodata(fake: FakeUpstream, other: FakeUpstream) -> None:
    text = f"forward . {fake.address} {{\nnext_on_nodata\n}}\nforward . {other.address}"
    async with running(text) as plugin:
        fake.script = rcode("NOERROR")
        assert addresses(await plugin.resolve(ask_for("a.test."), End())) == ["192.0.2.1"]
        fake.script = answer_all
        await plugin.resolve(ask_for("b.test."), End())
        fake.script = rcode("NXDOMAIN")
        assert (await plugin.resolve(ask_for("c.test."), End())).rcode == NXDOMAIN
    assert set(other.names) == {"a.test."}


async def test_records_of_a_hostile_stub_zone_are_not_passed_on(fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        asked.send(
            asked.reply(
                f"{asked.name} 60 IN A 192.0.2.1",
                "www.bank.example. 60 IN A 192.0.2.66",
                authority=("example. 60 IN NS ns.evil.test.", "bank.example. 60 IN NS ns.evil.test."),
                additional=("ns.evil.test. 60 IN A 192.0.2.66",),
            )
        )

    fake.script = script
    async with running(f"forward corp.example {fake.address}") as plugin:
        reply = await plugin.resolve(ask_for("www.corp.example."), End())
    assert addresses(reply) == ["192.0.2.1"]
    assert (len(reply.answer), reply.authority, reply.additional) == (1, (), ())


async def test_an_impossible_ttl_is_none(fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        before, _, behind = asked.address(ttl=7).rpartition(b"\0\0\0\x07")
        asked.send(before + b"\x80\0\0\x07" + behind)

    fake.script = script
    async with running(f"forward . {fake.address}") as plugin:
        assert (await plugin.resolve(ask_for(), End())).answer[0].ttl == 0


async def test_metadata_names_the_upstream(fake: FakeUpstream) -> None:
    async with running(f"forward . {fake.address}") as plugin:
        query = ask_for().replace(metadata={})
        await plugin.resolve(query, End())
        assert query.metadata is not None
        assert {label: value() for label, value in query.metadata.items()} == {"forward/upstream": fake.address}


async def test_metrics_have_the_names_of_coredns(fake: FakeUpstream) -> None:
    process = Process()
    async with running(f"forward . {fake.address}", process) as plugin:
        await plugin.resolve(ask_for(), End())
        text = process.metrics.expose().decode()
    process.warehouse.keep_only(set())
    labels = f'proxy_name="forward",rcode="NOERROR",to="{fake.address}"'
    assert f"coredns_proxy_request_duration_seconds_count{{{labels}}} 1.0" in text
    assert f'coredns_proxy_request_duration_seconds_bucket{{le="8.192",{labels}}} 1.0' in text
    assert f'coredns_proxy_healthcheck_failures_total{{proxy_name="forward",to="{fake.address}"}} 0.0' in text
    udp = f'{{proto="udp",proxy_name="forward",to="{fake.address}"}}'
    assert f"coredns_proxy_conn_cache_misses_total{udp} 1.0" in text
    assert f"coredns_proxy_conn_cache_hits_total{udp} 0.0" in text
    assert "coredns_forward_healthcheck_broken_total 0.0" in text
    assert "coredns_forward_max_concurrent_rejects_total 0.0" in text


async def test_tls_upstreams(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "dns.example")
    async with FakeUpstream(tls=server_context(certificate)) as fake:
        line = f"forward . tls://127.0.0.1%dns.example:{fake.port} {{\ntls {certificate[0]}\n}}"
        async with running(line) as plugin:
            assert addresses(await plugin.resolve(ask_for(), End())) == ["192.0.2.1"]


# --- host names ------------------------------------------------------------------------------------------------------


async def test_host_names_are_looked_up_by_the_resolver(fake: FakeUpstream, other: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        assert asked.name == "dns.example."
        asked.send(asked.address("127.0.0.1") if asked.type == "A" else asked.reply())

    other.script = script
    text = f"forward . dns.example:{fake.port} 127.0.0.1:{fake.port} {{\nresolver 127.0.0.1:1 {other.address}\n}}"
    async with running(text) as plugin:
        assert addresses(await plugin.resolve(ask_for(), End())) == ["192.0.2.1"]
        assert [server.to for server in plugin._taken] == [fake.address], "each address once"
    assert other.count(type="A") == other.count(type="AAAA") == 1


async def test_one_family_is_enough(fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        if asked.type == "AAAA":
            asked.send(asked.reply(f"{asked.name} 60 IN AAAA ::1"))
        else:
            asked.send(asked.reply(rcode="NXDOMAIN"))

    fake.script = script
    async with running(f"forward . tls://dns.example%other.example {{\nresolver {fake.address}\n}}") as plugin:
        (server,) = plugin._taken
    assert server.to == "[::1]:853"
    assert server.settings.tls is not None and server.settings.tls.server_name == "other.example"


async def test_host_names_are_looked_up_by_the_system(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: Any, **_: Any) -> list[Any]:
        if host != "dns.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(2, 2, 17, "", ("127.0.0.1", 0)), (2, 2, 17, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    async with running(f"forward . dns.example:{fake.port}") as plugin:
        assert addresses(await plugin.resolve(ask_for(), End())) == ["192.0.2.1"]
    with pytest.raises(CorefileError, match=r'^plugin/forward: C:2 - failed to resolve "no.example": .*not known'):
        async with running("forward . no.example"):
            pass


async def test_a_host_name_that_nobody_knows_refuses_the_configuration(fake: FakeUpstream) -> None:
    fake.script = rcode("NXDOMAIN")
    for resolvers, reason in (
        (fake.address, 'no addresses found for "dns.example"'),
        ("127.0.0.1:1", "connection refused"),
    ):
        with pytest.raises(CorefileError, match=f'failed to resolve "dns.example": .*{reason}'):
            async with running(f"forward . dns.example {{\nresolver {resolvers}\n}}"):
                pass


async def test_a_resolver_that_fails_for_one_family_will_do(
    fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Upstream.exchange

    async def only_ipv4(self: Upstream, qname: bytes, kind: int) -> Any:
        if kind != A:
            raise UpstreamError("i/o timeout")
        return await exchange(self, qname, kind)

    monkeypatch.setattr(Upstream, "exchange", only_ipv4)
    async with running(f"forward . dns.example {{\nresolver {fake.address}\n}}") as plugin:
        assert [server.to for server in plugin._taken] == ["192.0.2.1:53"]


async def test_too_many_addresses_of_a_host_name(fake: FakeUpstream) -> None:
    async def script(asked: Asked) -> None:
        asked.send(asked.reply(*(f"{asked.name} 60 IN A 192.0.2.{n}" for n in range(100 if asked.type == "A" else 0))))

    fake.script = script
    with pytest.raises(CorefileError, match="more than 60 upstream addresses: 100"):
        async with running(f"forward . dns.example {{\nresolver {fake.address}\n}}"):
            pass


async def test_an_address_that_this_machine_cannot_reach_refuses_the_configuration() -> None:
    with pytest.raises(CorefileError, match=r"^plugin/forward: C:2 - dial \[fe80::1%nosuchif\]:53: "):
        async with running("forward . fe80::1%nosuchif"):
            pass


# --- over reloads ----------------------------------------------------------------------------------------------------


async def test_a_server_outlives_a_reload_with_its_health_and_sockets(fake: FakeUpstream, other: FakeUpstream) -> None:
    process = Process()
    first, second = f"forward . {fake.address}", f"forward . {fake.address} {other.address} {{\npolicy sequential\n}}"
    async with running(first, process) as before:
        await before.resolve(ask_for("a.test."), End())
        (server,) = before._taken
        server.health.probe_late()
        async with running(second, process) as after_reload:
            assert after_reload._taken[0] is server
            await before.stop()
            await after_reload.resolve(ask_for("b.test."), End())
            assert other.names["b.test."] == 1, "it is still known that the first one is silent"
            assert server.sockets[0] == 1
    assert server.sockets == (0, 0)
    process.warehouse.keep_only(set())


async def test_no_query_is_lost_over_reloads(fake: FakeUpstream) -> None:
    fake.script = after(0.02)
    texts = iter([f". {{\nforward . {fake.address}\n# {n}\n}}" for n in range(100)])
    current = [next(texts)]
    async with serving(lambda: current[0]) as server:
        done = asyncio.Event()
        replies: list[int] = []

        async def keep_asking(worker: int) -> None:
            n = 0
            while not done.is_set():
                n += 1
                reply = await ask(server.ports[0], f"{n}.w{worker}.test.", tcp=worker % 2 == 1)
                replies.append(reply.rcode())

        workers = [asyncio.create_task(keep_asking(worker)) for worker in range(4)]
        for _ in range(5):
            await asyncio.sleep(0.05)
            current[0] = next(texts)
            await server.reload(force=True)
        done.set()
        await asyncio.gather(*workers)
    assert replies and set(replies) == {NOERROR}


async def test_through_the_whole_server(fake: FakeUpstream) -> None:
    big = [f"big.test. 60 IN A 10.0.{n // 256}.{n % 256}" for n in range(300)]

    async def script(asked: Asked) -> None:
        asked.send(asked.reply(*big) if asked.name == "big.test." else asked.address())

    fake.script = script
    async with serving(f". {{\nforward . {fake.address}\n}}") as server:
        port = server.ports[0]
        reply = await ask(port, "WWW.Example.org.")
        assert reply.question[0].name.to_text() == "WWW.Example.org."
        assert reply.answer[0][0].to_text() == "192.0.2.1"
        udp = await ask(port, "big.test.")
        assert udp.flags & 0x0200 and len(udp.to_wire()) <= 1232
        tcp = await ask(port, "big.test.", tcp=True)
        assert len(tcp.answer[0]) == 300 and not tcp.flags & 0x0200
        chaos = await ask(port, "version.bind.", "TXT", klass="CH")
        assert chaos.rcode() == NOERROR


async def test_a_thousand_questions_leave_nothing_behind(fake: FakeUpstream) -> None:
    fake.script = by_name({"dead.test.": silent})
    process = Process()
    async with running(f"forward . {fake.address} {{\nread_timeout 200ms\n}}", process) as plugin:
        (_, group), *_ = plugin._lines
        for batch in range(4):
            await asyncio.gather(
                *(plugin.resolve(ask_for(f"{batch}.{n}.test."), End()) for n in range(200)),
                *(plugin.resolve(ask_for(f"{batch}.{n}.dead.test."), End()) for n in range(20)),
            )
        assert (group.under_way, group.waiting, group._flights, group._clients) == (0, 0, {}, {})
        home = plugin._home
        (server,) = plugin._taken
        await until(lambda: len(home.wheel) <= 2)
        assert server._udp is not None and server._udp.open <= limits.UPSTREAM_PORTS
    process.warehouse.keep_only(set())
    # A probe that was under way ends one round later.
    await until(lambda: server.sockets == (0, 0))
