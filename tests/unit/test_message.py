"""The values that travel, and the numbers that DNS gives to things."""

from __future__ import annotations

import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import message
from kdns.message import FOREVER, NO_LEASE, Edns, Lease, Listener, Query, Record, Reply, failure

QUERY = Query(b"\1a\0", 1, 1, b"\1A\0", 7, 0x100, None, ("192.0.2.1", 53), Listener(), 19)


def test_type_names() -> None:
    assert message.type_text(28) == "AAAA"
    assert message.type_text(65400) == "TYPE65400"
    assert message.type_number("aaaa") == 28
    assert message.type_number("NSAP-PTR") == 23
    assert message.type_number("type65400") == 65400
    assert message.type_number("TYPE1") == 1


@pytest.mark.parametrize(
    "text", ["", "NOPE", "TYPE", "TYPE65536", "TYPE-1", "TYPE1x", "TYPE²", "28", "TYPE" + "9" * 5000]
)
def test_no_types(text: str) -> None:
    assert message.type_number(text) is None


@given(st.integers(0, 65535))
def test_every_type_has_a_text(number: int) -> None:
    assert message.type_number(message.type_text(number)) == number


def test_types_are_those_of_dnspython() -> None:
    for number, text in message.TYPES.items():
        try:
            theirs = dns.rdatatype.from_text(text)
        except dns.rdatatype.UnknownRdatatype:
            continue
        assert theirs == number


def test_classes() -> None:
    assert message.class_text(1) == "IN"
    assert message.class_text(7) == "CLASS7"
    assert message.class_number("ch") == 3
    assert message.class_number("ANY") == 255
    assert message.class_number("CLASS65535") == 65535
    assert message.class_number("CLASS65536") is None
    assert message.class_number("TYPE1") is None


def test_rcodes() -> None:
    assert message.rcode_text(3) == "NXDOMAIN"
    assert message.rcode_text(4095) == "RCODE4095"
    assert message.rcode_number("servfail") == 2
    assert message.rcode_number("BADSIG") == message.rcode_number("BADVERS") == 16
    assert message.rcode_number("NOPE") is None
    for number, text in message.RCODES.items():
        assert dns.rcode.from_text(text) == number


def test_leases_only_shrink() -> None:
    lease = Lease(FOREVER, (b"a", b"b"), rotate=True)
    assert lease.shrink(10.0) == Lease(10.0, (b"a", b"b"), rotate=True)
    assert lease.shrink(FOREVER, (b"b", b"c"), age=True) == Lease(FOREVER, (b"a", b"b", b"c"), rotate=True, age=True)
    assert lease.shrink(0.0) == Lease(0.0, (b"a", b"b"), rotate=True)
    assert Lease(5.0, age=True).shrink(10.0) == Lease(5.0, age=True)
    assert NO_LEASE.until == 0


def test_records() -> None:
    record = Record(b"\1a\0", 1, 30, b"\1\2\3\4")
    assert record.klass == message.IN
    assert record.with_ttl(5) == Record(b"\1a\0", 1, 5, b"\1\2\3\4")
    assert record.with_owner(b"\1b\0") == Record(b"\1b\0", 1, 30, b"\1\2\3\4")
    assert Record(b"\0", 1, 0, b"", 3).with_ttl(1).with_owner(b"\1x\0").klass == 3


def test_queries() -> None:
    assert not QUERY.do
    assert not QUERY.replace(edns=Edns(1232, False)).do
    assert QUERY.replace(edns=Edns(1232, True)).do
    renamed = QUERY.renamed(b"\1b\0")
    assert (renamed.name, renamed.spelling, renamed.id) == (b"\1b\0", b"\1b\0", 7)
    assert QUERY.replace(depth=1).depth == 1
    with pytest.raises(AttributeError):
        QUERY.name = b""  # type: ignore[misc]


def test_replies() -> None:
    reply = Reply(3, flags=message.AA)
    assert reply.leased(Lease(1.0)).lease == Lease(1.0)
    assert reply.replace(rcode=0) == Reply(flags=message.AA)
    failed = failure(2, "no upstream", "forward", ((22, ""),))
    assert (failed.rcode, failed.error, failed.plugin, failed.ede) == (2, "no upstream", "forward", ((22, ""),))
    assert failed.lease is NO_LEASE
