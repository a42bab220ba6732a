"""Corefile → Configuration: endpoints, order, shared HTTP addresses."""

from pathlib import Path

import pytest

from kdns.build import Endpoint, build
from kdns.errors import KdnsError
from kdns.name import from_text
from kdns.plugin import Process
from tests.certificates import make_certificate
from tests.support import parse


def test_endpoints_and_their_labels() -> None:
    text = "example.org example.net:5300 {\n prometheus\n}\n. {\n bind 127.0.0.1 ::1\n prometheus\n}\n"
    configuration = build(Process(), parse(text), 1053)
    assert {endpoint.label for endpoint in configuration.services} == {
        "dns://:1053", "dns://:5300", "dns://127.0.0.1:1053", "dns://[::1]:1053",
    }  # fmt: skip
    zones = configuration.services[Endpoint("dns", "", 1053)].routes.chains
    assert set(zones) == {from_text("example.org")}


def test_the_chain_follows_corednss_order_not_the_corefiles() -> None:
    text = ". {\n whoami\n forward . 127.0.0.1\n cache\n errors\n prometheus\n}\n"
    configuration = build(Process(), parse(text), 1053)
    assert [plugin.name for plugin in configuration.plugins] == ["prometheus", "errors", "cache", "forward", "whoami"]
    assert configuration.services[Endpoint("dns", "", 1053)].routes.any_class


def test_a_block_without_links_has_no_chain() -> None:
    configuration = build(Process(), parse("a. {\n}\nb. {\n reload\n}\n"), 1053)
    assert set(configuration.services[Endpoint("dns", "", 1053)].routes.chains.values()) == {None}


def test_blocks_share_http_addresses() -> None:
    text = "a. {\n prometheus :9153\n health :9153\n}\nb. {\n prometheus :9153\n}\n"
    configuration = build(Process(), parse(text), 1053)
    assert {address: set(service.paths) for address, service in configuration.http.items()} == {
        ":9153": {"/metrics", "/health"}
    }


def test_one_http_address_is_either_plain_or_encrypted(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    (tmp_path / "web.yml").write_text("tls_server_config: {cert_file: localhost.crt, key_file: localhost.key}\n")
    text = f"a. {{\n prometheus :9153\n}}\nb. {{\n prometheus :9153 {{\n tls {tmp_path}/web.yml\n }}\n}}\n"
    with pytest.raises(KdnsError, match="cannot serve http://:9153 - both with and without tls"):
        build(Process(), parse(text), 1053)


def test_networks_become_reverse_zones() -> None:
    configuration = build(Process(), parse("10.96.0.0/15 {\n prometheus\n}\n"), 53)
    zones = configuration.services[Endpoint("dns", "", 53)].routes.chains
    assert set(zones) == {from_text("96.10.in-addr.arpa"), from_text("97.10.in-addr.arpa")}
