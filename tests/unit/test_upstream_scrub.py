"""Which records of an upstream's reply are passed on."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from kdns import message, name
from kdns.message import Record
from kdns.name import from_text
from kdns.upstream.scrub import scrub
from kdns.wire import Message
from tests.plugintest import record, shown

GOOD = "www.shop.example. 60 A 192.0.2.1"


def scrubbed(
    qname: str,
    answer: Sequence[str] = (),
    authority: Sequence[str] = (),
    additional: Sequence[str] = (),
    zone: str = ".",
    qtype: int = message.A,
) -> tuple[list[str], list[str], list[str]]:
    wire_name = from_text(qname)
    sections = (tuple(record(text) for text in section) for section in (answer, authority, additional))
    found = scrub(Message(1, 0x8180, wire_name, wire_name, qtype, 1, *sections, None, 0, ()), from_text(zone))
    return shown(found[0]), shown(found[1]), shown(found[2])


def answer_of(qname: str, *answer: str, zone: str = ".", qtype: int = message.A) -> list[str]:
    return scrubbed(qname, answer, zone=zone, qtype=qtype)[0]


def test_the_usual_answer_is_passed_on_as_it_is() -> None:
    records = [GOOD, "www.shop.example. 60 A 192.0.2.2"]
    assert answer_of("www.shop.example.", *records) == records


def test_records_at_other_names_are_not_passed_on() -> None:
    for extra in ("www.bank.example. 60 A 192.0.2.66", "shop.example. 60 A 192.0.2.66", "bank. 60 CNAME evil."):
        assert answer_of("www.shop.example.", GOOD, extra) == [GOOD]
        assert answer_of("www.shop.example.", extra, GOOD) == [GOOD]
        assert answer_of("www.shop.example.", extra) == []


def test_the_case_of_names_does_not_matter() -> None:
    records = ["WWW.shop.example. 60 CNAME Host.Shop.Example.", "host.SHOP.example. 60 A 192.0.2.1"]
    assert answer_of("www.shop.example.", *records) == records


def test_the_chain_of_cnames_is_passed_on_in_any_order() -> None:
    chain = [
        "www.shop.example. 60 CNAME a.cdn.example.",
        "a.cdn.example. 60 CNAME b.cdn.test.",
        "b.cdn.test. 60 A 192.0.2.1",
        "b.cdn.test. 60 A 192.0.2.2",
    ]
    assert answer_of("www.shop.example.", *chain) == chain
    assert sorted(answer_of("www.shop.example.", *reversed(chain))) == sorted(chain)
    assert answer_of("www.shop.example.", *chain, "c.cdn.test. 60 A 192.0.2.66") == chain
    assert answer_of("www.shop.example.", chain[0], *chain[2:]) == chain[:1], "a chain that is broken ends there"


def test_a_stub_zones_chain_may_lead_out_of_it() -> None:
    chain = ["www.corp.example. 60 CNAME host.test.", "host.test. 60 A 192.0.2.1"]
    assert answer_of("www.corp.example.", *chain, zone="corp.example.") == chain


def test_a_second_cname_of_a_name_opens_no_second_chain() -> None:
    records = [
        "www.shop.example. 60 CNAME a.example.",
        "www.shop.example. 60 CNAME bank.example.",
        "a.example. 60 A 192.0.2.1",
        "bank.example. 60 A 192.0.2.66",
    ]
    assert answer_of("www.shop.example.", *records) == records[:3]


def test_a_loop_is_passed_on_and_ends() -> None:
    loop = ["a.example. 60 CNAME b.example.", "b.example. 60 CNAME a.example."]
    assert answer_of("a.example.", *loop) == loop
    assert answer_of("a.example.", "a.example. 60 CNAME a.example.") == ["a.example. 60 CNAME a.example."]


def test_dnames_on_the_way_are_passed_on() -> None:
    with_cname = [
        "shop.example. 60 DNAME shop.test.",
        "www.shop.example. 60 CNAME www.shop.test.",
        "www.shop.test. 60 A 192.0.2.1",
    ]
    assert answer_of("www.shop.example.", *with_cname) == with_cname
    without_cname = [with_cname[0], with_cname[2]]
    assert answer_of("www.shop.example.", *without_cname) == without_cname
    foreign = ["bank.example. 60 DNAME evil.test.", "www.shop.example. 60 DNAME evil.test."]
    assert answer_of("www.shop.example.", GOOD, foreign[0]) == [GOOD]
    assert answer_of("www.shop.example.", GOOD, "www.evil.test. 60 A 192.0.2.66", foreign[1]) == [GOOD, foreign[1]]


def test_a_name_that_a_dname_makes_too_long_harms_nobody() -> None:
    long = "a" * 60
    records = [f"shop.example. 60 DNAME {long}.{long}.{long}.test."]
    assert answer_of(f"{long}.{long}.shop.example.", *records) == records


def test_the_root_may_have_records_too() -> None:
    assert answer_of(".", ". 60 NS a.root.", qtype=message.NS) == [". 60 NS a.root."]
    assert answer_of(".", ". 60 DNAME test.", qtype=message.DNAME) == [". 60 DNAME test."]


def test_chains_are_cut_after_many_names() -> None:
    chain = [f"n{n}.example. 60 CNAME n{n + 1}.example." for n in range(100)]
    assert answer_of("n0.example.", *chain) == chain[:32]


SOA = "60 SOA ns. host. 1 2 3 4 5"


def authority_of(qname: str, *authority: str, zone: str = ".", answer: Sequence[str] = ()) -> list[str]:
    return scrubbed(qname, answer, authority, zone=zone)[1]


def test_authority_is_that_of_a_zone_that_the_name_is_in() -> None:
    for owner in ("www.shop.example.", "shop.example.", "example.", "."):
        for data in (SOA, "60 NS ns.test."):
            assert authority_of("www.shop.example.", f"{owner} {data}") == [f"{owner} {data}"]
    for owner in ("bank.example.", "a.www.shop.example.", "test."):
        for data in (SOA, "60 NS ns.test.", "60 A 192.0.2.66", "60 CNAME evil."):
            assert authority_of("www.shop.example.", f"{owner} {data}") == []
    assert authority_of("www.shop.example.", "shop.example. 60 A 192.0.2.66") == []


def test_authority_may_be_that_of_any_name_of_the_chain() -> None:
    answer = ["www.shop.example. 60 CNAME gone.test."]
    for owner in ("shop.example.", "test."):
        assert authority_of("www.shop.example.", f"{owner} {SOA}", answer=answer) == [f"{owner} {SOA}"]


def test_a_stub_zones_server_delegates_nothing_above_or_beside_it() -> None:
    for owner in ("example.", "."):
        assert authority_of("www.corp.example.", f"{owner} 60 NS ns.evil.", zone="corp.example.") == []
        assert authority_of("www.corp.example.", f"{owner} {SOA}", zone="corp.example.") == [f"{owner} {SOA}"]
    inside = "dept.corp.example. 60 NS ns.dept.corp.example."
    assert authority_of("www.dept.corp.example.", inside, zone="corp.example.") == [inside]
    outside = ["www.corp.example. 60 CNAME www.bank.example."]
    assert authority_of("www.corp.example.", "bank.example. 60 NS ns.evil.", zone="corp.example.", answer=outside) == []


SIGNED = "A 13 2 60 20300101000000 20200101000000 1 {} AAAA"


def test_dnssec_records_stay_with_their_zone() -> None:
    soa, signature = (
        f"shop.example. {SOA}",
        f"shop.example. 60 RRSIG {SIGNED.replace('A 13', 'SOA 13').format('shop.example.')}",
    )
    proof = "alpha.shop.example. 60 NSEC zulu.shop.example. A RRSIG NSEC"
    proof_signature = f"alpha.shop.example. 60 RRSIG {SIGNED.replace('A 13', 'NSEC 13').format('shop.example.')}"
    foreign = "alpha.bank.example. 60 NSEC zulu.bank.example. A RRSIG NSEC"
    wanted = [soa, signature, proof, proof_signature]
    assert len(authority_of("www.shop.example.", *wanted, foreign)) == 4
    assert len(authority_of("www.shop.example.", proof, proof_signature, foreign)) == 2, "a wildcard's proof has no SOA"
    assert authority_of("www.shop.example.", foreign) == []


def test_a_signature_stays_with_the_answer() -> None:
    records = [GOOD, f"www.shop.example. 60 RRSIG {SIGNED.format('shop.example.')}"]
    assert len(answer_of("www.shop.example.", *records)) == 2


def test_additional_addresses_are_those_of_targets_in_the_zone() -> None:
    for kind, data in (
        (message.MX, "MX 10 mail.shop.example."),
        (message.SRV, "SRV 0 0 25 mail.shop.example."),
        (message.NS, "NS mail.shop.example."),
        (message.SVCB, "SVCB 1 mail.shop.example. alpn=h2"),
    ):
        glue = ["mail.shop.example. 60 A 192.0.2.25", "MAIL.shop.example. 60 AAAA 2001:db8::25"]
        foreign = [
            "www.bank.example. 60 A 192.0.2.66",
            'mail.shop.example. 60 TXT "x"',
            "shop.example. 60 A 192.0.2.66",
        ]
        found = scrubbed("shop.example.", [f"shop.example. 60 {data}"], [], [*glue, *foreign], qtype=kind)
        assert found[2] == glue, data
        found = scrubbed("shop.example.", [f"shop.example. 60 {data}"], [], glue, zone="other.example.", qtype=kind)
        assert found[2] == [], data


def test_the_target_of_a_service_may_be_its_owner() -> None:
    found = scrubbed(
        "shop.example.",
        ["shop.example. 60 HTTPS 1 . alpn=h2"],
        [],
        ["shop.example. 60 A 192.0.2.1"],
        qtype=message.HTTPS,
    )
    assert found[2] == ["shop.example. 60 A 192.0.2.1"]


def test_data_that_are_cut_off_point_nowhere() -> None:
    owner = from_text("shop.example.")
    broken = Record(owner, message.HTTPS, 60, b"\0\1\x05ab")
    glue = record("ab. 60 A 192.0.2.66")
    question = Message(1, 0x8180, owner, owner, message.HTTPS, 1, (broken,), (), (glue,), None, 0, ())
    assert scrub(question, name.ROOT) == ((broken,), (), ())


def test_glue_comes_with_a_referral() -> None:
    referral = "dept.corp.example. 60 NS ns.dept.corp.example."
    glue = "ns.dept.corp.example. 60 A 192.0.2.53"
    found = scrubbed("www.dept.corp.example.", [], [referral], [glue], zone="corp.example.")
    assert found == ([], [referral], [glue])


@pytest.mark.parametrize("kind", ["CNAME", "DNAME"])
def test_the_largest_message_takes_no_time(kind: str) -> None:
    answer = tuple(record(f"n{n}.example. 60 {kind} n{n + 1}.example.") for n in range(2000))
    authority = tuple(record(f"n{n}.example. 60 NS n{n}.example.") for n in range(2000))
    additional = tuple(record(f"n{n}.example. 60 A 192.0.2.1") for n in range(2000))
    qname = from_text("n0.example.")
    began = time.process_time()
    scrub(Message(1, 0x8180, qname, qname, 1, 1, answer, authority, additional, None, 0, ()), name.ROOT)
    assert time.process_time() - began < 1.0
