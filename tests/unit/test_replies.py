"""Replies about cluster names: labels of addresses, records, the SOA."""

from __future__ import annotations

import pytest

from kdns import message, name, rdata
from kdns.cluster.index import Index
from kdns.cluster.replies import Replies, dashed, fits, stale, undashed
from kdns.message import AA, EDE_NOT_READY, EDE_STALE_ANSWER, FOREVER, NXDOMAIN, SERVFAIL, Lease
from kdns.name import pack_address
from tests.indextest import fill, namespace, put, service
from tests.plugintest import ask

ZONE = name.from_text("cluster.local.")


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("10.1.2.3", b"10-1-2-3"),
        ("fd00::1", b"fd00--1"),
        ("fd00::", b"fd00--0"),
        ("::1", b"--1"),
        ("::", b"--0"),
        ("1:2:3:4:5:6:7:8", b"1-2-3-4-5-6-7-8"),
    ],
)
def test_dashed_addresses(address: str, label: bytes) -> None:
    assert dashed(pack_address(address)) == label
    assert undashed(label) == pack_address(address)


@pytest.mark.parametrize(
    "label", [b"", b"-", b"a", b"1-2-3", b"1-2-3-256", b"1.2.3.4", b"a:b--1", b"\xff-1-1-1", b"10-1-1-"]
)
def test_labels_that_are_no_addresses(label: bytes) -> None:
    assert undashed(label) == b""


def test_mapped_addresses_are_ipv4_addresses() -> None:
    assert undashed(b"--ffff-a01-203") == pack_address("10.1.2.3")


def test_length() -> None:
    assert fits(bytes(255)) and not fits(bytes(256))


def test_replies() -> None:
    index = Index(("namespaces", "services", "pods"))
    replies = Replies(index, 600)
    facts = (b"fact",)
    unknown = replies.missing(ZONE, facts)
    assert (unknown.rcode, unknown.flags, unknown.lease, unknown.ede) == (
        SERVFAIL,
        AA,
        Lease(),
        ((EDE_NOT_READY, "namespaces not synced"),),
    )
    fill(index, namespace("dev"), kinds=("namespaces", "services"), now=5)
    missing = replies.missing(ZONE, facts)
    assert (missing.rcode, missing.flags, missing.lease) == (NXDOMAIN, AA, Lease(FOREVER, facts))
    assert replies.missing(ZONE, facts, "pods").ede == ((EDE_NOT_READY, "pods not synced"),)
    nothing = replies.found(ZONE, facts)
    assert (nothing.rcode, nothing.answer, nothing.lease) == (0, (), Lease(FOREVER, facts))
    assert nothing.authority == missing.authority == (replies.soa(ZONE),)
    addresses = [bytes(4), bytes(16)]
    found = replies.addresses(ask("cluster.local.", message.AAAA), ZONE, facts, addresses)
    assert found.answer == (replies.address(ZONE, bytes(16)),) and found.authority == ()
    assert replies.addresses(ask("cluster.local.", message.TXT), ZONE, facts, addresses) == nothing


def test_the_soa_keeps_up_with_the_index() -> None:
    index = Index(())
    replies = Replies(index, 600)

    def serial() -> str:
        record = replies.soa(ZONE)
        assert (record.owner, record.ttl) == (ZONE, 300)
        return rdata.to_text(record.type, record.rdata).split()[2]

    assert serial() == "0"
    put(index, service("web.dev", "10.0.0.1"), now=2**32 + 7.5)
    assert serial() == "7"


# --- out of a snapshot -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "remembered", "kinds"),
    [
        ((b"svc/\3web\3dev", b"ns/\3dev"), ("namespaces", "services"), ["namespaces", "services"]),
        ((b"svc/\3web\3dev", b"ns/\3dev"), ("services", "pods"), ["services"]),
        ((b"svc/\3web\3dev", b"eps/\3web\3dev"), ("endpointslices",), ["endpointslices"]),
        ((b"ip/\x0a\0\0\1",), ("services",), ["services"]),
        ((b"ip/\x0a\0\0\1",), ("endpointslices",), ["endpointslices"]),
        ((b"pod/\x0a\0\0\1",), ("pods",), ["pods"]),
        ((b"ns/\3dev",), ("services", "pods"), []),
        ((b"zone/whatever", b"odd"), ("services",), []),
        ((), ("services",), []),
    ],
)
def test_what_stands_on_a_snapshot(facts: tuple[bytes, ...], remembered: tuple[str, ...], kinds: list[str]) -> None:
    replies = Replies(Index(()), 30)
    answer = (replies.address(ZONE, bytes(4)),)
    reply = replies.found(ZONE, facts, answer, (replies.address(ZONE, bytes(16)),))
    found = stale(reply, remembered)
    if not kinds:
        assert found is reply
        return
    assert found.ede == ((EDE_STALE_ANSWER, f"{', '.join(kinds)} out of a snapshot"),)
    assert [record.ttl for record in (*found.answer, *found.additional)] == [5, 5]
    # It may be repeated, but not once these kinds are known.
    assert found.lease == Lease(FOREVER, (*facts, *(b"known/" + kind.encode() for kind in kinds)))
    assert found.rcode == 0 and found.flags == AA


def test_negative_ttls_and_short_ones() -> None:
    nothing = stale(Replies(Index(()), 600).found(ZONE, (b"svc/x",)), ("services",))
    assert [record.ttl for record in nothing.authority] == [5] and nothing.ede[0][0] == EDE_STALE_ANSWER
    zero = Replies(Index(()), 0)
    assert stale(zero.found(ZONE, (b"svc/x",), (zero.address(ZONE, bytes(4)),)), ("services",)).answer[0].ttl == 0


def test_a_failure_is_no_stale_answer() -> None:
    replies = Replies(Index(("services",)), 30)
    for reply in (replies.unknown(ZONE, "services"), replies.missing(ZONE, (b"svc/x",))):
        assert stale(reply, ("services",)) is reply
