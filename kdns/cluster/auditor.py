"""The self-audit: one task that holds what is known of each kind against the API, slowly, and puts right what differs.

Watches lose events without a word: proxies drop lines, servers are restored from backups, caches have bugs.  A round
lists the metadata of all kinds, one after the other, with the selectors of their watches, in pages of at most
`PAGE_SIZE` octets and at most two a second; the next round begins an interval after the beginning of the last.  Small
clusters are compared in a second, 150,000 Pods in a few minutes.  What differs, and still does when `GRACE` seconds
have passed, is asked for by itself and applied as the watch would have applied it; if more than `FEW` objects differ,
their kind is listed anew.  A watch that was silent while its objects changed is given up for another.

Nothing here is on the way of a query, and permission to list is all it takes.

- ``kdns_kubernetes_audits_total{resource,result}``: rounds that were ``done``, that ``failed`` because the API server
  did not answer as it should, or were ``overtaken`` by a list or by too many changes;
- ``kdns_kubernetes_audit_repairs_total{resource}``: objects that were known wrongly, or wrongly not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from random import random
from typing import Final, Protocol

from kdns import limits
from kdns.cluster.ask import Asker
from kdns.cluster.audit import (
    METADATA,
    Doubt,
    Ledger,
    Metadata,
    Place,
    Round,
    decode_metadata,
    decode_token,
    named,
    place_of,
)
from kdns.cluster.credentials import ApiError
from kdns.cluster.decoding import decode_list, decode_status
from kdns.cluster.http import JSON, Connection, TooLarge
from kdns.cluster.objects import Apply, Delete, Event, ObjectError
from kdns.cluster.watch import PAGE_SIZE, Watch, older
from kdns.log import Logger
from kdns.metrics import Metrics

PAUSE: Final = 0.5
"""Seconds from page to page, and from kind to kind."""
LARGEST: Final = 500
"""Objects of one page at most."""
FIRST_LIMIT: Final = 100
"""Objects of the first page, until it is known how large they are."""
GRACE: Final = 5.0
"""Seconds that an event may be under way."""
FEW: Final = 100
"""So many objects are put right one by one."""
GAP: Final = 0.05
"""Seconds between two of them."""
SLICE: Final = 1000
"""Names gone through until queries get their turn (under 1 ms)."""


class Subject(Protocol):
    """Who follows a kind."""

    watch: Watch
    heard_at: float | None
    """When the API server last said anything."""

    @property
    def in_step(self) -> bool:
        """Whether changes are followed, nothing that is known is in doubt, and no list is still taking force."""

    def put(self, event: Event, version: str) -> None:
        """Apply an event that the watch has not told, and write it into the ledger; ``version``: of the object that
        is there now, empty: none."""

    def wake(self) -> None:
        """The watch's deadline has changed."""


class _Refused(ApiError):
    """The API server answered with another HTTP status than 200."""

    def __init__(self, code: int, body: bytes) -> None:
        status = decode_status(body)
        super().__init__(" ".join(filter(None, (str(code), status.reason, status.message[:300]))))
        self.code = code
        self.body = body


class _Kind:
    """One kind, and what is remembered from round to round."""

    def __init__(self, subject: Subject, ledger: Ledger, asker: Asker) -> None:
        self.name = subject.watch.kind
        self.subject = subject
        self.ledger = ledger
        self.asker = asker
        self.limit = FIRST_LIMIT
        self.trouble = ""  # that the log knows of
        self.told_whole = False


class Auditor:
    """Compares all kinds, for ever."""

    def __init__(
        self,
        connection: Connection,
        subjects: Iterable[tuple[Subject, Ledger, Asker]],
        names: Callable[[str], Iterator[tuple[bytes, bytes]]],
        interval: float,
        now: Callable[[], float],
        metrics: Metrics,
        log: Logger,
        chance: Callable[[], float] = random,
    ) -> None:
        """``names``: namespace and name of what the index has of a kind; ``interval``: seconds."""
        self._connection = connection
        self._kinds = [_Kind(*subject) for subject in subjects]
        self._names = names
        self._interval = interval
        self._now = now
        self._log = log
        self._chance = chance
        self._audits = metrics.counter(
            "kdns_kubernetes_audits_total", "Comparisons with the API server.", ("resource", "result")
        )
        self._repairs = metrics.counter(
            "kdns_kubernetes_audit_repairs_total", "Objects that a comparison has put right.", ("resource",)
        )
        for kind in self._kinds:
            self._repairs.cell(kind.name)

    async def run(self) -> None:
        """Compare, for ever; ends with its task."""
        due = self._now()
        while True:
            # Replicas that were started together need not ask together.
            due = max(due + self._interval * (0.9 + 0.2 * self._chance()), self._now() + PAUSE)
            await asyncio.sleep(due - self._now())
            due = self._now()
            for kind in self._kinds:
                if kind.subject.in_step:
                    await self._audit(kind)
                    await asyncio.sleep(PAUSE)

    async def _audit(self, kind: _Kind) -> None:
        trouble = ""
        try:
            result = "done" if await self._compare(kind) else "overtaken"
        except (ApiError, ObjectError) as error:
            result, trouble = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - a bug in looking after the watches must not end them
            result, trouble = "failed", repr(error)
        self._audits.cell(kind.name, result).value += 1
        if trouble and trouble != kind.trouble:
            self._log.warning(f"{kind.name}: audit: {trouble}")
        kind.trouble = trouble

    async def _compare(self, kind: _Kind) -> bool:
        """One comparison; False: overtaken.  Raises ApiError and ObjectError."""
        began, version, token = self._now(), kind.subject.watch.version, ""
        comparison = Round(kind.ledger)
        while True:
            page = await self._page(kind, token)
            if comparison.overtaken or not kind.subject.in_step:
                return False
            if older(page.version, version) and not token:
                self._relist(kind, f"the server went back from version {version} to {page.version}")
                return True
            comparison.compare(page)
            token = page.continue_
            if not token or comparison.full:
                break
            if self._now() - began > limits.AUDIT_TIME:
                raise ApiError(f"the list takes longer than {limits.AUDIT_TIME:g} s")
            await asyncio.sleep(PAUSE)
        if not comparison.open() and not comparison.absent():
            return True
        await asyncio.sleep(GRACE)
        return await self._settle(kind, comparison, began)

    async def _settle(self, kind: _Kind, comparison: Round, began: float) -> bool:
        """Put right what the watch has not explained; False: overtaken."""
        subject = kind.subject
        if comparison.overtaken or not subject.in_step:
            return False
        doubts, absent = comparison.open(), comparison.absent()
        count = len(doubts) + len(absent)
        if count > FEW:
            self._repairs.cell(kind.name).value += count
            self._relist(kind, f"{count} objects are not as the API server has them")
            return True
        put_right = []
        for doubt in [*doubts, *await self._accuse(kind, comparison, absent)]:
            if await self._repair(kind, comparison, doubt):
                put_right.append(b"/".join(filter(None, (doubt.namespace, doubt.name))).decode("ascii", "replace"))
            await asyncio.sleep(GAP)
        if put_right:
            self._log.warning(
                f"{kind.name}: audit: {len(put_right)} put right of which the watch had not told: "
                + ", ".join(put_right[:5])
                + (", …" if len(put_right) > 5 else "")
            )
            if subject.heard_at is None or subject.heard_at < began:
                subject.watch.give_up(self._now())
                subject.wake()
        return not comparison.full

    async def _accuse(self, kind: _Kind, comparison: Round, absent: set[Place]) -> list[Doubt]:
        """Find out who was not in the list; of whom the index knows nothing the ledger need not know, either."""
        doubts: list[Doubt] = []
        for number, (namespace, name) in enumerate(self._names(kind.name) if absent else ()):
            if not number % SLICE:
                await asyncio.sleep(0)
            if (place := place_of(namespace, name)) in absent:
                absent.discard(place)
                doubts.append(comparison.accuse(namespace, name))
        for place in absent:
            kind.ledger.drop(place)
        return doubts

    async def _repair(self, kind: _Kind, comparison: Round, doubt: Doubt) -> bool:
        """Look at one object and tell the index; whether that was necessary."""
        subject, namespace, name = kind.subject, doubt.namespace, doubt.name
        target = kind.asker.one(namespace.decode("utf-8", "replace"), name.decode("utf-8", "replace")).target
        text = await self._read(target, JSON)
        version = named(kind.name, decode_metadata(kind.name, text).items, namespace, name)
        page = decode_list(kind.name, text)
        if comparison.overtaken or not subject.in_step or comparison.explained(doubt):
            return False
        if kind.ledger.holds(namespace, name, version):
            return False
        # What is there but makes no sense is left out, as it is of a list.
        found = page.objects[0] if page.objects else None
        subject.put(Apply(kind.name, found) if found is not None else Delete(kind.name, namespace, name), version)
        self._repairs.cell(kind.name).value += 1
        return True

    def _relist(self, kind: _Kind, text: str) -> None:
        kind.subject.watch.distrust(f"audit: {text}", self._now())
        kind.subject.wake()

    async def _page(self, kind: _Kind, token: str) -> Metadata:
        """One page; raises ApiError and ObjectError."""
        while True:
            try:
                text = await self._read(kind.asker.page(kind.limit, token, 0.0).target, METADATA)
                break
            except TooLarge:
                if kind.limit == 1:
                    raise
                kind.limit //= 2
            except _Refused as refusal:
                # The list is too old to go on as one of then; as one of now it serves just as well.
                if refusal.code != 410 or not token or not (token := decode_token(refusal.body)):
                    raise
            await asyncio.sleep(PAUSE)
        page = decode_metadata(kind.name, text)
        kind.limit = max(1, min(LARGEST, kind.limit * PAGE_SIZE // len(text)))
        if not page.partial and not kind.told_whole:
            kind.told_whole = True
            self._log.info(f"{kind.name}: audit: the API server sends whole objects where metadata would do")
        await asyncio.sleep(0)  # a page is read and compared in two turns
        return page

    async def _read(self, target: str, accept: str) -> bytes:
        """The body of a good answer; raises ApiError."""
        response = await self._connection.get(target, accept)
        try:
            if response.status != 200:
                raise _Refused(response.status, await response.read(limits.API_STATUS))
            return await response.read(limits.API_PAGE)
        finally:
            response.close()
