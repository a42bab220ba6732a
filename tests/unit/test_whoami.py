from __future__ import annotations

from kdns.message import AA, NO_LEASE, Listener
from kdns.plugins.whoami import Whoami
from tests.plugintest import End, ask, at_once, refused, set_up, shown


def test_who_asks() -> None:
    end = End()
    reply = at_once(set_up(Whoami, "whoami\nwhoami"), ask("Example.ORG."), end)
    assert shown(reply.additional) == ["Example.ORG. 0 A 192.0.2.7", "_udp.Example.ORG. 0 SRV 0 0 4242 ."]
    assert (reply.answer, reply.flags, reply.plugin, reply.lease) == ((), AA, "whoami", NO_LEASE)
    assert end.asked == []


def test_over_tcp_and_ipv6() -> None:
    query = ask(".", peer=("2001:db8::1", 5), listener=Listener(proto="tcp"))
    reply = at_once(set_up(Whoami, "whoami"), query, End())
    assert shown(reply.additional) == [". 0 AAAA 2001:db8::1", "_tcp. 0 SRV 0 0 5 ."]


def test_a_name_too_long_for_the_port() -> None:
    long = "a" * 61 + "." + ("b" * 63 + ".") * 3
    reply = at_once(set_up(Whoami, "whoami"), ask(long), End())
    assert len(reply.additional) == 1


def test_it_takes_nothing() -> None:
    assert refused(Whoami, "whoami x") == "Wrong argument count or unexpected line ending after 'x'"
    assert refused(Whoami, "whoami {\nx\n}") == "unknown property 'x'"
