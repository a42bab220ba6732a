"""Which packed replies can be made to fit other names, and how."""

from __future__ import annotations

import pytest

from kdns.denial import Denial, Existing
from kdns.message import AA, NXDOMAIN, SOA, TC, TXT, A, Edns, Listener, Query, Record, Reply
from kdns.name import from_text, spell
from kdns.patches import Scheme, cut, labels_below, scheme
from kdns.wire import pack_query, pack_reply, parse_query
from tests.plugintest import record

DENIAL = Denial(from_text("svc.cluster.local."), Existing(2))
CLUSTER = "cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"
PLAIN = Reply(NXDOMAIN, authority=(record(CLUSTER),), flags=AA)


def packed(qname: str, reply: Reply = PLAIN, edns: Edns | None = None) -> tuple[bytes, bytes]:
    packet = pack_query(1, 0, spell(qname), A, 1, edns)
    query = parse_query(packet, ("192.0.2.1", 5), Listener())
    assert isinstance(query, Query)
    return packet, pack_reply(query, reply, 512)


def test_the_pointers_of_a_denial() -> None:
    packet, reply = packed("www.Example.com.dev.SVC.cluster.local.", edns=Edns(1232, False))
    found = scheme(packet, reply, DENIAL)
    assert found is not None
    name = packet.index(b"\0", 12) + 1 - 12
    tail = reply[12 + name + 4 :]
    # All three names end in the zone.
    assert len(found.places) == 3 and found.places[0] == 0
    assert found.target == 12 - len(from_text("cluster.local."))
    pieces = cut(tail, found.places)
    assert len(pieces) == 4 and (0xC000 + name + found.target).to_bytes(2, "big").join(pieces) == tail
    for other in ("x.svc.cluster.local.", "a.b.c.d.e.svc.cluster.local."):
        packet, reply = packed(other, edns=Edns(1232, False))
        assert scheme(packet, reply, DENIAL) == found


@pytest.mark.parametrize(
    "qname",
    ["svc.cluster.local.", "cluster.local.", "x.pod.cluster.local.", "dev.svc.cluster.local.", "asvc.cluster.local."],
)
def test_names_that_are_not_denied(qname: str) -> None:
    existing = Existing(2)
    existing.add(b"\3dev")
    assert scheme(*packed(qname), Denial(DENIAL.apex, existing)) is None


def test_a_label_that_looks_like_the_apex() -> None:
    trap = b"%c%b" % (len(DENIAL.apex), b"a" + DENIAL.apex[:-1]) + DENIAL.apex[4:]
    assert labels_below(b"\1a" + DENIAL.apex, DENIAL.apex) == 2
    assert labels_below(trap[:-1] + b"\3org\0", DENIAL.apex) == 0
    inside = b"\x05a\3svc\7cluster\5local\0"
    assert inside.endswith(DENIAL.apex) and labels_below(inside, DENIAL.apex) == 0


@pytest.mark.parametrize(
    "reply",
    [
        # Pointers to two places.
        Reply(NXDOMAIN, authority=(record("svc.cluster.local. 30 SOA a.cluster.local. b.cluster.local. 1 2 3 4 5"),)),
        # In front of the apex.
        Reply(NXDOMAIN, authority=(record("x.svc.cluster.local. 30 SOA a. b. 1 2 3 4 5"),)),
        Reply(NXDOMAIN, (record("x.svc.cluster.local. 30 A 192.0.2.1"),)),
        # Records that may hold any names.
        Reply(NXDOMAIN, authority=(record(CLUSTER), record("cluster.local. 30 NS ns.cluster.local."))),
        Reply(NXDOMAIN, authority=(Record(from_text("cluster.local."), TXT, 1, b"\1x"),)),
        # Cut, or with a longer name it would be.
        Reply(NXDOMAIN, authority=PLAIN.authority, flags=TC),
        Reply(NXDOMAIN, authority=PLAIN.authority * 5),
    ],
)  # fmt: skip
def test_replies_that_fit_no_other_name(reply: Reply) -> None:
    assert scheme(*packed("x.svc.cluster.local.", reply), DENIAL) is None


def test_replies_without_pointers() -> None:
    assert scheme(*packed("x.svc.cluster.local.", Reply(NXDOMAIN)), DENIAL) == Scheme((), 0)
    elsewhere = Reply(NXDOMAIN, authority=(Record(b"\1a\0", SOA, 1, b"\1b\0\1c\0" + bytes(20)),))
    assert scheme(*packed("x.svc.cluster.local.", elsewhere), DENIAL) == Scheme((), 0)
    assert cut(b"tail", ()) == (b"tail",)
