"""What the scenarios rely on: answers are read, the load notices what is lost and wrong, histories find bugs."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rrset
import pytest

from kdns.cluster import index, shelves
from kdns.cluster.objects import Delete
from tests.chaos import __main__ as command
from tests.chaos import histories, world
from tests.chaos.answers import said
from tests.chaos.stage import Load
from tests.chaos.verdict import NotHere, Run, Scenario, Verdict
from tests.fakeupstream import Asked, FakeUpstream


def reply(type: str, *records: str, rcode: int = 0, ede: int | None = None) -> bytes:
    query = dns.message.make_query("Web.dev.svc.cluster.local.", type, id=1)
    message = dns.message.make_response(query)
    message.set_rcode(rcode)
    for record in records:
        owner, kind, data = record.split(" ", 2)
        message.answer.append(dns.rrset.from_text(owner, 5, "IN", kind, data))
    if ede is not None:
        message.use_edns(0, options=[dns.edns.EDEOption(ede)])
    return message.to_wire()


OWN = "web.dev.svc.cluster.local."


@pytest.mark.parametrize(
    ("packet", "right"),
    [
        (reply("A", f"{OWN} A 10.0.0.1", f"{OWN} A 10.0.0.2"), {"10.0.0.1", "10.0.0.2"}),
        (reply("A", f"{OWN} CNAME x.example.", "x.example. A 192.0.2.1"), {"192.0.2.1"}),
        (reply("AAAA", f"{OWN} AAAA fd00::1"), {"fd00::1"}),
        (reply("SRV", f"{OWN} SRV 0 50 80 A.{OWN}"), {f"0 80 a.{OWN}"}),
        (reply("PTR", f"{OWN} PTR Web.dev.svc.cluster.local."), {OWN}),
        (reply("A"), set()),
        (reply("A", rcode=3), {"NXDOMAIN"}),
        (reply("A", rcode=2, ede=14), {"SERVFAIL", "EDE 14"}),
        (reply("A", f"{OWN} A 10.0.0.1", ede=3), {"10.0.0.1", "EDE 3"}),
        (reply("A", f"{OWN} A 10.0.0.1")[:-1], {"garbage"}),
        (reply("A", f"{OWN} A 10.0.0.1") + b"x", {"garbage"}),
        (b"\0\0\x80\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", {"garbage"}),
    ],
    ids=range(12),
)
def test_answers_are_read(packet: bytes, right: set[str]) -> None:
    assert said(packet) == right


def test_a_record_twice() -> None:
    once = reply("A", f"{OWN} A 10.0.0.1")
    record = once[-16:]
    assert said(once[:6] + b"\0\2" + once[8:] + record) == {"a record twice"}


async def test_the_load_notices_what_is_lost_and_wrong(tmp_path: Path) -> None:
    async def script(asked: Asked) -> None:
        if asked.name.startswith("lost"):
            return
        asked.send(asked.address("192.0.2.9" if asked.name.startswith("wrong") else "192.0.2.1"))

    names = ("right.example.", "lost.example.", "wrong.example.", "n*.example.")
    asked = [world.Question(name, "A", (world.FORWARDED,)) for name in names]
    async with FakeUpstream() as upstream:
        upstream.script = script
        load = Load(Run(tmp_path, quick=True), [("127.0.0.1", upstream.port)], asked, patience=0.3)
        await load.begin()
        try:
            await asyncio.sleep(1)
            seen = await load.window()
            assert seen.sent > 50 and seen.lost > 5 and seen.wrong > 5 and seen.sent > seen.lost + seen.wrong
            assert any("['192.0.2.9'], not ['192.0.2.1']" in text for text in seen.examples)
            load.expect({2: [frozenset({"192.0.2.9"})]})
            await load.window()
            await asyncio.sleep(0.3)
            assert not (await load.window()).wrong
        finally:
            load.close()
    verdict = Verdict(Run(tmp_path))
    verdict.clean(seen)
    assert len(verdict.failed) == 3


def test_histories_are_true() -> None:
    assert histories.mismatches(10**6, 200) == []


def forgetful(self: index.Index, event: Any, now: float) -> set[bytes]:
    return set() if isinstance(event, Delete) else APPLY(self, event, now)


def factless(self: index.Index, event: Any, now: float) -> set[bytes]:
    APPLY(self, event, now)
    return set()


def hasty(shelf: Any, relist: Any, found: Any) -> set[bytes]:
    """A change takes force in the midst of a list."""
    relist.seen.add(shelf.key(found.namespace, found.name))
    facts: set[bytes] = shelf.put(shelf.key(found.namespace, found.name), found)
    return facts


def lossy(self: shelves.Slices, key: bytes, new: Any) -> Any:
    """Losses before gains."""
    return new


APPLY = index.Index.apply


@pytest.mark.parametrize(
    ("place", "name", "bug", "said"),
    [
        (index.Index, "apply", forgetful, ", not ["),
        (index.Index, "apply", factless, ", not ["),
        (index, "_noted", hasty, "in a list"),
        (shelves.Slices, "both", lossy, "in a list"),
    ],
)
def test_histories_find_bugs(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, bug: Callable[..., Any], said: str
) -> None:
    monkeypatch.setattr(place, name, bug)
    assert any(said in text for seed in range(1000) for text in histories.mismatches(seed, 1))


def test_outcomes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def fine(run: Run) -> Verdict:
        verdict = Verdict(run)
        verdict.at_most("took", 0.5, 1.0, "s")
        return verdict

    async def bad(run: Run) -> Verdict:
        verdict = Verdict(run)
        verdict.at_most("took", 2.0, 1.0, "s")
        verdict.at_least("counted", 0, 1)
        verdict.check("all is well", False, "it is not")
        return verdict

    async def lacking(run: Run) -> Verdict:
        raise NotHere("a program")

    async def broken(run: Run) -> Verdict:
        raise ValueError("oh")

    options = Namespace(scale=1.0, quick=False)
    plays = {"fine": fine, "bad": bad, "lacking": lacking, "broken": broken}
    results = {
        id: command._play(Scenario(id, id, "a figure", play), "[1/4]", tmp_path, 1, options)
        for id, play in plays.items()
    }
    outcomes = {id: result.outcome for id, result in results.items()}
    assert outcomes == {"fine": "passed", "bad": "FAILED", "lacking": "not here", "broken": "FAILED"}
    assert results["bad"].failed == ["took 2 s > 1 s", "counted 0 < 1", "not: all is well (it is not)"]
    table = command.table(list(results.values()))
    assert "| fine fine | a figure | took 500 ms | 0 | passed |" in table and "1 passed, 2 FAILED, 1 not here" in table
    assert "ValueError: oh" in table
    assert "[1/4] lacking lacking: not here a program" in capsys.readouterr().err
