"""What one server answered beside what the other did: differences, and which of them are meant.

Each `Deviation` names the row of docs/compatibility.md that gives its reason.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from kdns.message import AA, AD, CD, CNAME, OPTION_EDE, RA, RD, SOA, TC, Edns, Record, rcode_text, type_text
from kdns.rdata import NAMES
from kdns.rdata import to_text as rdata_text
from kdns.wire import FormatError, parse_reply
from tests.coredns.world import Question

_FLAGS: Final = {"AA": AA, "TC": TC, "RD": RD, "RA": RA, "AD": AD, "CD": CD}


@dataclass(frozen=True)
class Line:
    """One record, without its TTL."""

    owner: bytes
    type: int
    klass: int
    data: bytes | str
    """Names in it are folded."""

    def __str__(self) -> str:
        data = self.data if isinstance(self.data, str) else rdata_text(self.type, self.data)
        return f"{_shown(self.owner)} {type_text(self.type)} {data}"


class Answer:
    """A reply, taken apart."""

    def __init__(self, packet: bytes | None) -> None:
        self.packet = packet
        self.size = len(packet or b"")
        self.question = b""
        self.sections: tuple[dict[Line, int], ...] = ({}, {}, {})
        self.spelled: tuple[frozenset[bytes], ...] = (frozenset(),) * 3
        self.edns: Edns | None = None
        self.ede: tuple[tuple[int, str], ...] = ()
        self.flags = 0
        self.doubled: tuple[int, ...] = ()
        if packet is None:
            self.form, self.rcode = "silence", ""
            return
        self.flags, rcode = struct.unpack_from("!H", packet, 2)[0], packet[3] & 15
        try:
            message = parse_reply(packet)
        except FormatError as error:
            self.form = "header alone" if len(packet) == 12 else f"not readable: {error}"
            self.rcode = rcode_text(rcode)
            return
        self.form, self.rcode = "reply", rcode_text(message.rcode)
        self.question = message.spelling + struct.pack("!HH", message.type, message.klass)
        sections = message.answer, message.authority, message.additional
        self.sections = tuple(_lines(section) for section in sections)
        self.doubled = tuple(len(section) - len(set(map(_line, section))) for section in sections)
        self.spelled = tuple(frozenset(record.owner for record in section) for section in sections)
        self.edns, self.ede = message.edns, message.ede

    @property
    def empty_answer(self) -> bool:
        """Whether there is no record in the answer section."""
        return not self.sections[0]

    def __str__(self) -> str:
        flags = " ".join(name for name, bit in _FLAGS.items() if self.flags & bit)
        sections = " | ".join("; ".join(f"{line} {ttl}" for line, ttl in part.items()) for part in self.sections)
        return f"{self.form} {self.rcode} [{flags}] {sections} opt={self.edns} ede={self.ede} {self.size} octets"


def _line(record: Record) -> Line:
    rdata = record.rdata
    if record.type == SOA:
        # The serial is a clock's.
        rdata = rdata[:-20] + bytes(4) + rdata[-16:]
    data = rdata_text(record.type, rdata).lower() if record.type in NAMES else rdata
    return Line(record.owner.lower(), record.type, record.klass, data)


def _lines(records: Iterable[Record]) -> dict[Line, int]:
    return {_line(record): record.ttl for record in records}


def _shown(name: bytes) -> str:
    out = ""
    while name[0]:
        out += name[1 : 1 + name[0]].decode("latin-1") + "."
        name = name[1 + name[0] :]
    return out or "."


@dataclass(frozen=True)
class Context:
    """What else decides whether a difference is meant."""

    setting: str
    cached: bool
    text: str
    """The Corefile."""
    elapsed: float
    """Seconds since these servers were first asked."""


@dataclass(frozen=True)
class Case:
    """One difference."""

    field: str
    question: Question
    core: Answer
    ours: Answer
    context: Context


@dataclass(frozen=True)
class Deviation:
    """A row of docs/compatibility.md, and the differences that come from it."""

    row: str
    applies: Callable[[Case], bool]


def differences(question: Question, core: Answer, ours: Answer, context: Context) -> list[str]:
    """The fields in which the answers differ."""
    if core.form != ours.form:
        return ["form"]
    found = [name for name, bit in _FLAGS.items() if (core.flags ^ ours.flags) & bit]
    if context.cached and core.flags & ours.flags & RA and "AA" in found:
        # Repeated answers are AA, in both; at the moment of expiry one may still repeat what the other asks again.
        found.remove("AA")
    if (core.flags ^ ours.flags) & 0x7800:
        found.append("opcode")
    if core.rcode != ours.rcode:
        found.append("rcode")
    if core.question != ours.question:
        found.append("question")
    for name, theirs, mine in zip(("answer", "authority", "additional"), core.sections, ours.sections, strict=True):
        if theirs.keys() != mine.keys():
            found.append(name)
        elif any(not _same_ttl(ttl, mine[line], context) for line, ttl in theirs.items()):
            found.append(f"ttl of {name}")
    if core.doubled != ours.doubled:
        found.append("doubled")
    if not found and core.spelled != ours.spelled:
        found.append("spelling")
    return found + _edns_differences(core.edns, ours.edns)


def _same_ttl(theirs: int, mine: int, context: Context) -> bool:
    # Through a cache both count down, from when each one fetched it.
    return theirs == mine or (context.cached and abs(theirs - mine) <= context.elapsed + 1)


def _edns_differences(core: Edns | None, ours: Edns | None) -> list[str]:
    if core is None or ours is None:
        return [] if core is ours else ["OPT"]
    found = []
    if core.size != ours.size:
        found.append("OPT size")
    if core.do != ours.do:
        found.append("DO")
    if sorted(core.options) != sorted(option for option in ours.options if option[0] != OPTION_EDE):
        found.append("OPT options")
    return found


# --- what is meant ---------------------------------------------------------------------------------------------------


def _by_cluster(answer: Answer) -> bool:
    """Whether *kubernetes* made this denial."""
    return answer.empty_answer and any(
        line.type == SOA and str(line.data).startswith("ns.dns") for line in answer.sections[1]
    )


def _has_soa(answer: Answer) -> bool:
    return any(line.type == SOA for line in answer.sections[1])


def _by_cluster_or_answer(answer: Answer) -> bool:
    return bool(answer.flags & AA) and (not answer.empty_answer or _by_cluster(answer))


def _not_echoed(case: Case) -> bool:
    options = case.ours.edns.options if case.ours.edns is not None else ()
    return case.field == "OPT options" and all(code == OPTION_EDE for code, _ in options)


def _soa_below_apex(case: Case) -> bool:
    return case.question.type == "SOA" and case.core.rcode == "NOERROR" and _by_cluster(case.core)


def _owns_other_types(case: Case) -> bool:
    if case.ours.rcode != "NOERROR" or not _by_cluster(case.ours):
        return False
    name = case.question.name.lower()
    server = name.startswith((b"\x0bdns-version", b"\x02ns\x03dns"))
    reverse = name.endswith(b"\x04arpa\0") and case.question.type != "PTR"
    return server or reverse or case.question.type == "TXT"


def _case_of_server(case: Case) -> bool:
    name = case.question.name
    server = name.lower().startswith(b"\x02ns\x03dns") or case.question.type == "NS"
    led_there = any(line.type == CNAME and str(line.data).startswith("ns.dns.") for line in case.ours.sections[0])
    return name != name.lower() and (server or led_there)


def _malformed(case: Case) -> bool:
    odd = "garbage", "answer counted", "two opts", "header only", "cut"
    return case.question.odd in odd and case.ours.rcode == "FORMERR"


def _opcode(case: Case) -> bool:
    return case.question.odd.startswith("opcode") and case.ours.rcode == "NOTIMP"


def _ad_of_refusal(case: Case) -> bool:
    return (
        bool(case.question.odd) and case.field in ("AD", "RA", "AA", "TC") and case.ours.rcode in ("FORMERR", "NOTIMP")
    )


def _badvers(case: Case) -> bool:
    return case.question.odd == "edns 1" and case.field == "OPT size"


def _ds(case: Case) -> bool:
    return case.question.type == "DS" and case.context.setting == "blocks"


def _hidden_pointer(case: Case) -> bool:
    fewer = case.ours.sections[0].keys() <= case.core.sections[0].keys()
    return case.question.type == "PTR" and case.context.setting == "namespace_labels" and fewer


def _pod_spelling(case: Case) -> bool:
    """Another spelling of an IPv6 address, or the second address of a Pod."""
    v6 = b"-" in case.question.name and b"\x03pod" in case.question.name.lower() and "verified" in case.context.text
    return v6 and _by_cluster_or_answer(case.ours) and case.ours.rcode == "NOERROR"


def _minimum(case: Case) -> bool:
    return case.context.cached and case.field.startswith("ttl") and _has_soa(case.core)


def _transfer_ttl(case: Case) -> bool:
    transfer = case.question.type in ("IXFR", "AXFR") and case.core.flags & RA
    return bool(case.context.cached and transfer and case.field.startswith(("ttl", "AD")))


def _long_reverse(case: Case) -> bool:
    name = case.question.name.lower()
    return case.question.type == "PTR" and name.endswith(b"\x03ip6\x04arpa\0") and len(name) > 32 * 2 + 10


def _orphan(case: Case) -> bool:
    """CoreDNS cannot write the name that it makes up, and stays silent."""
    return case.question.type == "PTR" and case.core.form == "silence" and case.ours.form == "reply"


def _root_zone(case: Case) -> bool:
    return case.context.setting == "root zone" and case.question.name.lower() == b"\x02ns\x03dns\0"


def _class(case: Case) -> bool:
    return case.question.klass != 1 and "forward" in case.context.text


def _twice(case: Case) -> bool:
    return case.field == "doubled" and not any(case.ours.doubled)


def _referral(case: Case) -> bool:
    referral = case.core.rcode == "NOERROR" and case.core.empty_answer and not _has_soa(case.core)
    return case.field == "AA" and case.context.cached and referral


def _inner_zone(case: Case) -> bool:
    target = any(" CNAME " in str(line) and str(line).endswith(".sub.cluster.local.") for line in case.ours.sections[0])
    return case.context.setting == "zones" and target and case.core.empty_answer


def _cut(case: Case) -> bool:
    """Which records are left is chance, or more of them fit."""
    if not case.core.flags & TC or case.field not in ("TC", "answer", "authority", "additional", "doubled"):
        return False
    if case.ours.flags & TC and case.question.type == "SRV":
        # Names of different length: full is full.
        return case.ours.size > min(max(512, case.question.size), 1232) - 120
    counts = [[len(section) for section in answer.sections] for answer in (case.core, case.ours)]
    return counts[1] >= counts[0]


def _small(case: Case) -> bool:
    """An answer that CoreDNS sends in a datagram that may be fragmented."""
    big = case.question.size > 1232 and not case.question.tcp and "bufsize" not in case.context.text
    fewer = all(ours.items() <= core.items() for ours, core in zip(case.ours.sections, case.core.sections, strict=True))
    return big and bool(case.ours.flags & TC) and fewer and case.core.size > 1200


DEVIATIONS: Final = (
    Deviation("Size of answers over UDP", _small),
    Deviation("EDNS options of the asker", _not_echoed),
    Deviation("SOA of a name below the zone", _soa_below_apex),
    Deviation("Other types at a name that exists", _owns_other_types),
    Deviation("Capital letters in `ns.dns` and at the zone itself", _case_of_server),
    Deviation("Spelling of names", lambda case: case.field == "spelling"),
    Deviation("Malformed queries", _malformed),
    Deviation("Other opcodes", _opcode),
    Deviation("Flags of an error", _ad_of_refusal),
    Deviation("Another EDNS version", _badvers),
    Deviation("DS", _ds),
    Deviation("Reverse lookups with `namespace_labels`", _hidden_pointer),
    Deviation("Names of verified Pods", _pod_spelling),
    Deviation("IPv6 reverse names that are too long", _long_reverse),
    Deviation("EndpointSlices of no Service", _orphan),
    Deviation("`kubernetes .`", _root_zone),
    Deviation("Classes other than IN", _class),
    Deviation("ExternalName into a zone within the zone", _inner_zone),
    Deviation("Records that are there twice", _twice),
    Deviation("Cached referrals", _referral),
    Deviation("Where answers are cut", _cut),
    Deviation("TTL of denials", _minimum),
    Deviation("Zone transfers through `cache`", _transfer_ttl),
)


class Verdict:
    """All that was compared."""

    def __init__(self) -> None:
        self.questions = 0
        self.meant: Counter[str] = Counter()
        self.unmeant: list[Case] = []

    def add(self, question: Question, core: Answer, ours: Answer, context: Context) -> None:
        """One question, answered by both."""
        self.questions += 1
        for field in differences(question, core, ours, context):
            case = Case(field, question, core, ours, context)
            row = next((one.row for one in DEVIATIONS if one.applies(case)), None)
            if row is None:
                self.unmeant.append(case)
            else:
                self.meant[row] += 1

    def __str__(self) -> str:
        shown = [
            f"[{case.context.setting}] {case.field}: {case.question}\n  coredns: {case.core}\n  kdns:    {case.ours}"
            for case in self.unmeant[:20]
        ]
        return "\n".join([f"{len(self.unmeant)} differences in {self.questions} questions", *shown])
