"""tls: DNS over TLS with the block's certificate."""

import asyncio
import ssl
from pathlib import Path

import dns.message
import dns.query
import pytest

from kdns.corefile import CorefileError
from kdns.server import Server
from tests.certificates import make_certificate
from tests.support import free_port, parse, serving


async def over_tls(port: int, certificate: Path, own: tuple[Path, Path] | None = None) -> int:
    context = ssl.create_default_context(cafile=str(certificate))
    if own is not None:
        context.load_cert_chain(*own)
    query = dns.message.make_query("example.org", "A")
    reply = await asyncio.to_thread(
        dns.query.tls, query, "127.0.0.1", 5, port, ssl_context=context, server_hostname="localhost"
    )
    return int(reply.rcode())


async def test_dns_over_tls(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    async with serving(f"tls://.:{free_port()} {{\n bind 127.0.0.1\n tls {certificate} {key}\n whoami\n}}\n") as server:
        [banner] = server.banner()
        port = int(banner.split(":")[2].split()[0])
        assert banner == f"tls://.:{port} on 127.0.0.1"
        assert await over_tls(port, certificate) == 0


async def test_clients_may_have_to_show_a_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    text = (
        f"tls://.:{free_port()} {{\n root {tmp_path}\n bind 127.0.0.1\n"
        " tls localhost.crt localhost.key localhost.crt {\n"
        " client_auth require_and_verify\n }\n whoami\n}\n"
    )
    async with serving(text) as server:
        port = server.ports[0]
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            await over_tls(port, certificate)
        assert await over_tls(port, certificate, (certificate, key)) == 0


async def test_a_reload_shows_the_new_certificate(tmp_path: Path) -> None:
    """Renewed in place, or another file: both count from the next connection on, for DNS and for metrics."""
    certificate, key = make_certificate(tmp_path)
    web = tmp_path / "web.yml"
    web.write_text("tls_server_config:\n  cert_file: localhost.crt\n  key_file: localhost.key\n")
    metrics = free_port()
    text = (
        f"tls://.:{free_port()} {{\n bind 127.0.0.1\n tls {certificate} {key}\n"
        f" prometheus 127.0.0.1:{metrics} {{\n tls {web}\n }}\n whoami\n}}\n"
    )
    async with serving(lambda: text) as server:
        old = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", server.ports[0]))
        make_certificate(tmp_path)
        assert await server.reload(force=True)
        assert await over_tls(server.ports[0], certificate) == 0
        for port in (server.ports[0], metrics):
            new = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            assert new != old and new.strip() == certificate.read_text().strip()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("tls", "ACME"),
        ("tls {c}", "Wrong argument count"),
        ("tls {c} /missing", "cannot use the certificate"),
        ("tls {k} {c}", "cannot use the certificate"),
        ("tls {c} {k} {{\n client_auth maybe\n}}", "unknown authentication type 'maybe'"),
        ("tls {c} {k} {{\n client_auth require\n}}", "require_and_verify"),
        ("tls {c} {k} {{\n nonsense\n}}", "unknown option 'nonsense'"),
    ],
)
async def test_what_is_wrong_has_a_place(tmp_path: Path, line: str, problem: str) -> None:
    certificate, key = make_certificate(tmp_path)
    text = f"tls://. {{\n{line.format(c=certificate, k=key)}\n whoami\n}}\n"
    server = Server(lambda: parse(text), 0)
    with pytest.raises(CorefileError, match=problem):
        await server.start()
    await server.stop()
