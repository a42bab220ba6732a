"""prometheus: counts per block, the exposition, TLS."""

import ssl
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kdns.corefile import CorefileError
from kdns.server import Server
from tests.certificates import make_certificate
from tests.support import ask, free_port, http_get, parse, serving


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, sorted label values…) → value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_only_blocks_with_the_directive_count() -> None:
    port = free_port()
    text = f"counted. other. {{\n prometheus 127.0.0.1:{port}\n whoami\n}}\nquiet. {{\n whoami\n}}\n"
    async with serving(text) as server:
        dns = server.ports[0]
        for name in ("a.counted.", "b.counted.", "a.other.", "a.quiet."):
            await ask(dns, name)
        await ask(dns, "nowhere.")
        await ask(dns, "a.counted.", "TYPE1234", tcp=True, edns=0)
        status, body = await http_get(port, "/metrics")
        assert status == 200
        values = samples(body)
        name = "coredns_dns_requests_total"
        assert values[name, "1", "udp", "dns://:0", "A", "", "counted."] == 2
        assert values[name, "1", "udp", "dns://:0", "A", "", "other."] == 1
        assert values[name, "1", "udp", "dns://:0", "A", "", "dropped"] == 1
        assert values[name, "1", "tcp", "dns://:0", "other", "", "counted."] == 1
        assert not [key for key in values if "quiet." in key]
        assert values["coredns_dns_responses_total", "whoami", "NOERROR", "dns://:0", "", "counted."] == 3
        assert values["coredns_plugin_enabled", "whoami", "dns://:0", "", "counted."] == 1
        assert values["coredns_panics_total",] == 0
        assert ("process_resident_memory_bytes",) in values
        assert [key for key in values if key[0] == "coredns_build_info"]


async def test_a_reload_shows_what_is_enabled_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.limits.RETIRE", 0.0)
    port = free_port()
    text = f". {{\n prometheus 127.0.0.1:{port}\n whoami\n errors\n}}\n"
    async with serving(lambda: text) as server:
        text = f". {{\n prometheus 127.0.0.1:{port}\n whoami\n}}\n"
        assert await server.reload()
        while server._retired or server._stopping:
            await ask(server.ports[0], "a.")
        body = (await http_get(port, "/metrics"))[1]
        assert 'coredns_plugin_enabled{name="whoami"' in body and 'coredns_plugin_enabled{name="errors"' not in body


async def test_a_reload_forgets_servers_and_zones_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.limits.RETIRE", 0.0)
    port = free_port()
    text = f"stays. gone. {{\n prometheus 127.0.0.1:{port}\n whoami\n}}\n"
    async with serving(lambda: text) as server:
        text = f"stays. {{\n prometheus 127.0.0.1:{port}\n whoami\n}}\n"
        assert await server.reload()
        while server._retired or server._stopping:
            await ask(server.ports[0], "a.stays.")
        body = (await http_get(port, "/metrics"))[1]
        assert 'zone="stays."' in body and 'zone="gone."' not in body


async def test_over_tls(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path)
    web = tmp_path / "web.yml"
    web.write_text("tls_server_config:\n  cert_file: localhost.crt\n  key_file: localhost.key\n")
    port = free_port()
    async with serving(f". {{\n prometheus 127.0.0.1:{port} {{\n tls {web}\n runtime_metrics\n }}\n}}\n"):
        context = ssl.create_default_context(cafile=str(certificate))
        status, body = await http_get(port, "/metrics", context)
        assert status == 200 and "coredns_build_info" in body


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prometheus nowhere", "missing port"),
        ("prometheus {\n nonsense\n}", "unknown option: nonsense"),
        ("prometheus {\n runtime_metrics yes\n}", "Wrong argument count"),
        ("prometheus {\n tls /does/not/exist\n}", "cannot use web configuration"),
        ("prometheus {\n tls /dev/null\n}", "cannot use web configuration"),
        ("prometheus\nprometheus", "only be used once"),
    ],
)
async def test_what_is_wrong_has_a_place(text: str, problem: str) -> None:
    server = Server(lambda: parse(f". {{\n{text}\n}}\n"), 0)
    with pytest.raises(CorefileError, match=f"plugin/prometheus: Corefile:[23] - .*{problem}"):
        await server.start()
    await server.stop()
