"""The same rewrite rules for kdns and the real CoreDNS: the same answers, and the same rules refused."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from kdns.errors import KdnsError
from tests.support import captured_log, free_port, serving

pytestmark = pytest.mark.skipif(shutil.which("coredns") is None, reason="coredns is not on PATH")

ZONE = """
$ORIGIN back.test.
@ 3600 IN SOA ns.back.test. host.back.test. 1 2 3 4 5
@ 3600 IN NS ns.back.test.
ns 60 IN A 192.0.2.53
www 60 IN A 192.0.2.1
www 60 IN AAAA 2001:db8::1
www 60 IN MX 10 mail.back.test.
alias 60 IN CNAME www.back.test.
far 60 IN CNAME alias.back.test.
mail 60 IN A 192.0.2.2
_sip._udp 60 IN SRV 1 2 5060 www.back.test.
ptr 60 IN PTR www.back.test.
naptr 60 IN NAPTR 1 2 "u" "sip" "!x!y!" www.back.test.
short 5 IN A 192.0.2.3
long 86400 IN A 192.0.2.4
txt 60 IN TXT "a"
"""

REGEX = r"name regex (.*)\.front\.test {1}.back.test"
OWN = "+=65001:7a7a"
"""The client sends this option."""

ALIKE = [
    (
        "name www.front.test www.back.test",
        "www.front.test|WWW.Front.test|www.front.test MX|www.back.test|x.front.test",
    ),
    ("name exact mail.front.test nope.back.test", "mail.front.test"),
    ("name exact a.front.test alias.back.test", "a.front.test|a.front.test CNAME"),
    ("name suffix front.test back.test", "www.front.test|far.front.test|Far.Front.Test"),
    (
        "name suffix .front.test .back.test answer auto",
        "www.front.test|far.front.test|_sip._udp.front.test SRV|www.front.test MX|front.test NS|front.test SOA|"
        "naptr.front.test NAPTR|ptr.front.test PTR|nope.front.test|txt.front.test",
    ),
    ("name suffix front.test back.test answer auto", "front.test NS|front.test SOA|www.front.test|Www.fRont.test MX"),
    ("name prefix x- y answer auto", "x-.www.back.test"),
    ("name prefix foo www", "foo.back.test|foo.www.back.test"),
    ("name prefix foo. www.", "foo.back.test"),
    ("name prefix foo. www. answer auto", "foo.back.test|foo.back.test MX"),
    ("name substring front back answer auto", "www.front.test"),
    ("name substring front. back. answer auto", "www.front.test|www.front.test MX"),
    (REGEX, "www.front.test|far.front.test"),
    (f"{REGEX} answer auto", "www.front.test|far.front.test|_sip._udp.front.test SRV|nope.front.test"),
    (rf"{REGEX} answer name (.*)\.back\.test {{1}}.front.test", "www.front.test|far.front.test|WWW.FRONT.test MX"),
    (
        rf"{REGEX} answer name (.*)\.back\.test {{1}}.front.test answer value (.*)\.back\.test {{1}}.other.test",
        "www.front.test|far.front.test|www.front.test MX|_sip._udp.front.test SRV|front.test SOA|x.front.test SOA|"
        "naptr.front.test NAPTR",
    ),
    (r"name regex (a)(b)?\.front\.test {2}{1}www.back.test", "a.front.test|ab.front.test"),
    ("name regex ^x(.*) {1}", "x|xwww.back.test"),
    ("name regex ^y(.*) ..{1}", "ywww.back.test"),
    (
        "{\n"
        + REGEX
        + "\nanswer name (.*)\\.back\\.test {1}.front.test\nanswer value (.*)\\.back\\.test {1}.front.test\n}",
        "far.front.test",
    ),
    ("stop {\n" + REGEX + "\nanswer auto\n}", "far.front.test"),
    (
        "continue name suffix front.test mid.test answer auto\nrewrite name suffix mid.test back.test answer auto",
        "www.front.test|far.front.test|www.front.test MX",
    ),
    (
        "continue name suffix front.test mid.test\nrewrite continue name suffix mid.test back.test answer auto",
        "www.front.test MX",
    ),
    ("name a.front.test www.back.test\nrewrite name a.front.test short.back.test", "a.front.test"),
    ("type AAAA A", "www.back.test AAAA|www.back.test"),
    ("type ANY HINFO", "www.back.test ANY"),
    ("class CH IN", "www.back.test A CH|www.back.test"),
    ("ttl www.back.test 7", "www.back.test|www.back.test MX|www.back.test TXT"),
    ("ttl regex .* 30-100", "short.back.test|long.back.test|www.back.test|far.back.test|nope.back.test"),
    ("ttl suffix back.test -100", "short.back.test|long.back.test"),
    ("ttl prefix short. 100-", "short.back.test"),
    ("ttl substring back. 9", "short.back.test"),
    ("continue ttl regex .* 30-100\nrewrite ttl exact www.back.test 50", "www.back.test"),
    ("rcode nope.back.test NXDOMAIN SERVFAIL", "nope.back.test|www.back.test"),
    ("rcode regex .* NXDOMAIN NOERROR", "nope.back.test|x.other.test"),
    ("rcode regex .* REFUSED NXDOMAIN", "x.other.test"),
    ("rcode regex .* 2 3", "x.other.test"),
    ("cname www.back.test short.back.test", "alias.back.test|far.back.test|www.back.test|alias.back.test CNAME"),
    ("cname exact www.back.test nope.back.test", "alias.back.test"),
    ("cname suffix back.test. other.test.", "alias.back.test CNAME"),
    ("cname prefix www. mail.", "alias.back.test|alias.back.test AAAA"),
    ("cname substring www mail", "alias.back.test"),
    (r"cname regex (.*)\.back\.test short.back.test.", "alias.back.test"),
    (
        "continue name exact a.front.test alias.back.test\nrewrite cname www.back.test short.back.test",
        "a.front.test",
    ),
    ("edns0 local set 0xfde9 0x61626364", f"www.back.test +|www.back.test {OWN}"),
    ("edns0 local set 0xfde9 0x61626364 revert", f"www.back.test +|www.back.test {OWN}"),
    ("edns0 local replace 0xfde9 abcd", f"www.back.test +|www.back.test {OWN}"),
    ("edns0 local replace 0xfde9 abcd revert", f"www.back.test +|www.back.test {OWN}"),
    ("edns0 local append 65001 abcd", f"www.back.test +|www.back.test {OWN}"),
    ("edns0 local unset 65001", f"www.back.test {OWN}"),
    ("edns0 local set 65001 {qname}", "WWW.back.test +"),
    ("edns0 local set 65001 {qtype}", "www.back.test MX +"),
    ("edns0 local set 65001 {client_ip}", "www.back.test +"),
    ("edns0 local set 65001 {protocol}", "www.back.test +"),
    ("edns0 local set 65001 {server_ip}", "www.back.test +"),
    ("edns0 local set 65001 {no/label}", "www.back.test +"),
    ("edns0 nsid set", "www.back.test +|www.back.test +=3:"),
    ("edns0 nsid set revert", "www.back.test +"),
    ("edns0 nsid unset", "www.back.test +=3:"),
    ("edns0 subnet set 24 56", "www.back.test +"),
    (
        "continue edns0 local set 65001 a\nrewrite continue edns0 local set 65001 b\nrewrite edns0 local set 2 c",
        "www.back.test +",
    ),
]

RULES = [
    "",
    "stop",
    "continue",
    "foo a b",
    "name a",
    "name",
    "name a b c",
    "name exact a b c",
    "name exact a b answer",
    "name exact a b answer auto",
    "name exact a b answer x",
    "name exact a b answer name x",
    "name exact a b answer name ( y",
    "name exact a b answer name x {1}",
    "name exact a b answer auto name x y",
    "name exact a b answer value x y auto",
    "name exact a b answer value x y name a b",
    "name regex ( b",
    "name regex a {1}",
    "name regex (a) {1}{2}",
    "name regex a {0}",
    "name regex (?=a) b",
    "name foo a b",
    "answer name a b",
    "type A",
    "type A B",
    "type A AAAA MX",
    "type a aaaa",
    "class IN XX",
    "class ch in",
    "ttl a",
    "ttl a x",
    "ttl a 5",
    "ttl a 5-",
    "ttl a -5",
    "ttl a -",
    "ttl a 7-5",
    "ttl a 5-7-9",
    "ttl a 4294967296",
    "ttl a 4294967295",
    "ttl foo a 5",
    "ttl exact a 5 6",
    "ttl regex ( 5",
    "rcode a 0 1",
    "rcode a 0",
    "rcode a 24 0",
    "rcode a noerror nxdomain",
    "rcode exact a 0 FOO",
    "rcode exact a 0 1 2",
    "rcode foo a 0 1",
    "cname a",
    "cname a b",
    "cname foo a b",
    "cname exact a b c",
    "cname regex ( b",
    "edns0",
    "edns0 local",
    "edns0 local set",
    "edns0 local set 0xffee",
    "edns0 local set 0xffee 0x6",
    "edns0 local set 0xffee 0xzz",
    "edns0 local set 0xfffff abc",
    "edns0 local set x abc",
    "edns0 local set 1 {foo}",
    "edns0 local set 1 {foo/bar}",
    "edns0 local set 1 {/bar}",
    "edns0 local foo 1 a",
    "edns0 foo set 1 a",
    "edns0 local set 1 a b",
    "edns0 local unset",
    "edns0 local unset 1",
    "edns0 local unset 1 2",
    "edns0 nsid set 1",
    "edns0 nsid set",
    "edns0 nsid unset 1",
    "edns0 nsid unset",
    "edns0 subnet set",
    "edns0 subnet set 24",
    "edns0 subnet set 24 56",
    "edns0 subnet set 33 56",
    "edns0 subnet set 24 129",
    "edns0 subnet set a b",
    "edns0 subnet unset 1",
    "edns0 subnet unset",
    "edns0 local set 1 revert",
    "edns0 nsid revert",
    "{\nname a b\n}",
    "{\n}",
    "name a b {\nx\n}",
    "STOP NAME a b",
    "name EXACT a b",
    "name exact a b ANSWER AUTO",
    "name a b answer auto",
    "name regex a *.b",
    "name exact a..b c",
]


def conf(folder: Path, port: int, rule: str) -> str:
    (folder / "zone").write_text(ZONE)
    text = f".:{port} {{\nmetadata\nrewrite {rule}\nfile {folder}/zone back.test\n}}\n"
    (folder / "Corefile").write_text(text)
    return text


def start(folder: Path) -> subprocess.Popen[str] | None:
    """CoreDNS, when it has started; None when it refuses."""
    process = subprocess.Popen(
        ["coredns", "-conf", folder / "Corefile"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("CoreDNS-"):
            return process
    stop(process)
    return None


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def ask(port: int, question: str) -> list[str]:
    """The answer to ``NAME [TYPE [CLASS]] [+[=CODE:HEX]]`` (+ means EDNS), as lines in lower case."""
    words, plus, option = question.partition("+")
    query = dns.message.make_query(*(words.split() + ["A", "IN"][len(words.split()) - 1 :])[:3])
    if plus:
        code, _, data = option.removeprefix("=").partition(":")
        options = [dns.edns.GenericOption(int(code), bytes.fromhex(data))] if code else []
        query.use_edns(0, 0, 1232, options=options)
    try:
        reply = dns.query.udp(query, "127.0.0.1", 5, port)
    except dns.exception.Timeout:
        return ["timeout"]
    lines = [dns.rcode.to_text(reply.rcode()), dns.flags.to_text(reply.flags)]
    for section in (reply.question, reply.answer, reply.authority, reply.additional):
        lines += ["--", *(line for rrset in section for line in sorted(rrset.to_text().splitlines()))]
    if reply.edns >= 0:
        lines.append(f"OPT {reply.payload} {sorted((int(o.otype), o.to_wire().hex()) for o in reply.options)}")
    # kdns writes names that are the question's in the question's spelling, because that compresses them.
    return [line.lower() for line in lines]


@pytest.mark.parametrize(("rule", "questions"), ALIKE)
async def test_the_same_answers(tmp_path: Path, rule: str, questions: str) -> None:
    port = free_port()
    text = conf(tmp_path, port, rule)
    process = await asyncio.to_thread(start, tmp_path)
    assert process is not None
    theirs = [await asyncio.to_thread(ask, port, question) for question in questions.split("|")]
    stop(process)
    with captured_log():
        async with serving(text):
            ours = [await asyncio.to_thread(ask, port, question) for question in questions.split("|")]
    assert ours == theirs


@pytest.mark.parametrize("rule", RULES)
async def test_the_same_rules(tmp_path: Path, rule: str) -> None:
    port = free_port()
    text = conf(tmp_path, port, rule)
    process = await asyncio.to_thread(start, tmp_path)
    if process is not None:
        stop(process)
    with captured_log():
        try:
            async with serving(text):
                taken = True
        except KdnsError:
            taken = False
    assert taken == (process is not None)


async def test_a_client_without_edns_gets_none(tmp_path: Path) -> None:
    """CoreDNS adds an OPT record to the reply, too (RFC 6891 section 7 forbids it)."""
    port = free_port()
    text = conf(tmp_path, port, "edns0 local set 0xfde9 abcd")
    process = await asyncio.to_thread(start, tmp_path)
    assert process is not None
    theirs = await asyncio.to_thread(ask, port, "www.back.test")
    stop(process)
    with captured_log():
        async with serving(text):
            ours = await asyncio.to_thread(ask, port, "www.back.test")
    assert theirs == [*ours, "opt 4096 [(65001, '61626364')]"]
