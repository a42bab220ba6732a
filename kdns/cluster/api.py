"""Cluster objects from the API server: one task per kind that keeps a `watch.Watch` going and hands its events on.

Nothing that the API server does or sends ends a task: it is logged (seldom), shown in `ApiSource.trouble`, and tried
again.  Events are applied a millisecond's worth at a time, so that queries are answered during the longest list.

Metrics, beside those of `kdns.cluster.http`:

- ``kdns_kubernetes_relists_total{resource}``: lists begun after the first;
- ``kdns_kubernetes_rejected_total{resource,reason}``: what was turned away: ``page`` or ``line``, which were too large,
  ``nonsense``, which could not be read, ``odd``: objects left out of a list because they make no sense;
- ``kdns_kubernetes_last_event_age_seconds{resource}``: since the API server last said anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from kdns import limits
from kdns.cluster.ask import Asker, Selection
from kdns.cluster.audit import Ledger
from kdns.cluster.auditor import Auditor
from kdns.cluster.credentials import ApiError
from kdns.cluster.decoding import Status, WatchEvent, decode_event, decode_list, decode_status
from kdns.cluster.http import Connection, Response, TooLarge
from kdns.cluster.objects import Apply, Delete, Event, Init, InitApply, InitDone, ObjectError
from kdns.cluster.watch import (
    Ended,
    Failed,
    Input,
    Late,
    Listed,
    Nonsense,
    Opened,
    Oversize,
    Refused,
    Watch,
)
from kdns.log import Logger
from kdns.metrics import Metrics

__all__ = ["ApiError", "ApiSource", "Connection", "Selection"]

SILENT: Final = 3.0
"""Seconds without an answer after which that is told."""
SLICE: Final = 0.001
"""Seconds of work on events until queries get their turn."""
LOG_PAUSE: Final = 5.0
"""Seconds between log lines about one kind."""
LOG_AGAIN: Final = 60.0
"""Seconds until the same trouble is told again."""


class ApiSource:
    """Keeps an index in step with an API server."""

    def __init__(
        self,
        connection: Connection,
        kinds: Mapping[str, Selection],
        apply: Callable[[Event], object],
        finish: Callable[[InitDone], Iterable[object]] | None = None,
        *,
        audit: float = 0.0,
        names: Callable[[str], Iterator[tuple[bytes, bytes]]] = lambda kind: iter(()),
        now: Callable[[], float] = time.monotonic,
        metrics: Metrics,
        log: Logger,
    ) -> None:
        """``kinds``: which kinds to follow, and which of their objects.  ``apply`` takes each event, in order.

        ``audit``: seconds between comparisons of what is known with the API, see `kdns.cluster.auditor`; 0: none.
        ``names``: namespace and name of what is known of a kind.
        ``finish`` takes InitDone instead, which may mean much work: it is done step by step, as far as the result is
        iterated over.
        """
        self._connection = connection
        self._followers = []
        subjects = []
        for kind, selection in kinds.items():
            ledger = Ledger() if audit else None
            follower = _Follower(connection, Watch(kind, selection), apply, finish, ledger, now, metrics, log)
            self._followers.append(follower)
            if ledger is not None:
                subjects.append((follower, ledger, Asker(kind, selection)))
        self._auditor = Auditor(connection, subjects, names, audit, now, metrics, log) if audit else None
        self._tasks: list[asyncio.Task[None]] = []
        self._forget_metrics = metrics.before_scrape(self._show_ages)

    @property
    def status(self) -> dict[str, str]:
        """Why a kind is not known yet, in words for ``/ready``; empty once its first list was whole."""
        return {follower.watch.kind: follower.missing for follower in self._followers}

    @property
    def trouble(self) -> dict[str, str]:
        """What is in the way of a kind at this moment, known or not; empty: nothing."""
        return {follower.watch.kind: follower.watch.trouble for follower in self._followers}

    def start(self) -> None:
        """Begin, in the running loop."""
        self._tasks = [
            asyncio.create_task(follower.run(), name=f"kubernetes {follower.watch.kind}")
            for follower in self._followers
        ]
        if self._auditor is not None:
            self._tasks.append(asyncio.create_task(self._auditor.run(), name="kubernetes audit"))

    def close(self) -> None:
        """End; no event is applied from now on."""
        for task in self._tasks:
            task.cancel()
        self._connection.close()
        self._forget_metrics()

    async def wait_closed(self) -> None:
        """Wait until the tasks have ended after `close`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _show_ages(self) -> None:
        for follower in self._followers:
            follower.show_age()


class _Follower:
    """Follows one kind."""

    def __init__(
        self,
        connection: Connection,
        watch: Watch,
        apply: Callable[[Event], object],
        finish: Callable[[InitDone], Iterable[object]] | None,
        ledger: Ledger | None,
        now: Callable[[], float],
        metrics: Metrics,
        log: Logger,
    ) -> None:
        """``ledger``: where to write down who has been heard of; None: nobody reads it."""
        self.watch = watch
        self.synced = False  # a whole list has been applied
        self._kind = watch.kind
        self._connection = connection
        self._apply = apply
        self._ledger = ledger
        self._patience: asyncio.Timeout | None = None  # of the read that is under way
        self._finish = finish
        self._now = now
        self._log = log
        self._turn = 0.0  # when others get their turn
        self._told = ""  # the trouble that the log knows of
        self._told_at = float("-inf")
        self._asked_at: float | None = None  # when what waits for an answer was asked
        self.heard_at: float | None = None
        """When the API server last said anything."""
        self._begun = False  # the first list
        self._listing = False  # a list has begun to take force, and not ended
        self._relists = metrics.counter(
            "kdns_kubernetes_relists_total", "Lists begun after the first.", ("resource",)
        ).cell(self._kind)
        self._rejected = metrics.counter(
            "kdns_kubernetes_rejected_total", "Pages, lines and objects turned away.", ("resource", "reason")
        )
        self._age = metrics.gauge(
            "kdns_kubernetes_last_event_age_seconds", "Since the API server last said anything.", ("resource",)
        )

    @property
    def missing(self) -> str:
        """Why the kind is not known yet; empty when it is."""
        if self.synced or self.watch.trouble:
            return "" if self.synced else self.watch.trouble
        silent = self._asked_at is not None and self._now() - self._asked_at >= SILENT
        return "the API server does not answer" if silent else "the first list is under way"

    @property
    def in_step(self) -> bool:
        """See `auditor.Subject`: the watch is ahead of what it has told, which is applied bit by bit."""
        return self.watch.in_step and not self._listing

    def show_age(self) -> None:
        if self.heard_at is not None:
            self._age.cell(self._kind).value = self._now() - self.heard_at

    def put(self, event: Event, version: str) -> None:
        """Apply an event that the watch has not told; ``version``: of the object that is there now, empty: none."""
        try:
            self._apply(event)
        except Exception:
            self.watch.distrust("events were lost", self._now())
            self.wake()
            raise
        self._note(event, version)
        if self._ledger is not None and version and isinstance(event, Delete):  # of no use to the index, but there
            self._ledger.note(event.namespace, event.name, version)

    def wake(self) -> None:
        """The watch's deadline has changed."""
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + self.watch.deadline - self._now())

    async def run(self) -> None:
        """Ask what is to be asked next, for ever."""
        while True:
            try:
                await self._ask()
            except ApiError as error:
                await self._feed(Failed(str(error)))
            except Exception as error:  # noqa: BLE001 - a bug in taking one object in must not end the watch of all
                self._log.error(f"{self._kind}: {error!r}")
                self.watch.start_over("events were lost", self._now())

    async def _ask(self) -> None:
        request = self.watch.request
        await asyncio.sleep(request.wait)
        self._asked_at = self._now()
        try:
            response = await self._connection.get(request.target)
        finally:
            self._asked_at = None
        try:
            if response.status != 200:
                await self._feed(Refused(await _refusal(response)))
            elif request.verb == "list":
                await self._page(response)
            else:
                await self._follow(response)
        finally:
            response.close()

    async def _page(self, response: Response) -> None:
        try:
            text = await response.read(limits.API_PAGE)
            page = decode_list(self._kind, text)
        except TooLarge:
            self._reject("page")
            await self._feed(Oversize())
        except ObjectError as error:
            self._reject("nonsense")
            await self._feed(Nonsense(str(error)))
        else:
            for complaint in page.odd:
                self._reject("odd")
                self._tell(complaint)
            self.heard_at = self._now()
            await self._feed(Listed(page, len(text)))
            if self._ledger is not None:
                for one in page.left:
                    self._ledger.note(one.namespace, one.name, one.resource_version)

    async def _follow(self, response: Response) -> None:
        watch = self.watch
        await self._feed(Opened())
        while watch.open:
            try:
                lines = await self._lines(response)
            except TimeoutError:
                await self._feed(Late())
                continue
            except TooLarge as error:
                self._reject("line")
                await self._feed(Nonsense(str(error)))
                if watch.open:
                    raise
                continue
            if lines is None:
                await self._feed(Ended())
                continue
            self.heard_at = self._now()
            for line in lines:
                await self._line(line)
                if not watch.open:
                    break

    async def _lines(self, response: Response) -> list[bytes] | None:
        """The next lines; raises TimeoutError when the watch's deadline passes, also while lines keep coming."""
        left = self.watch.deadline - self._now()
        if left <= 0:
            raise TimeoutError
        try:
            async with asyncio.timeout(left) as self._patience:
                return await response.lines()
        finally:
            self._patience = None

    async def _line(self, line: bytes) -> None:
        try:
            event = decode_event(self._kind, line)
        except ObjectError as error:
            self._reject("nonsense")
            await self._feed(Nonsense(str(error)))
        else:
            await self._feed(event)

    async def _feed(self, what: Input) -> None:
        """Hand the input to the watch and its events to the index."""
        versions = iter(_versions(what))
        for event in self.watch.feed(what, self._now()):
            if isinstance(event, InitDone) and self._finish is not None:
                for _ in self._finish(event):
                    await self._give_way()
            else:
                self._apply(event)
            if self._ledger is not None:
                self._note(event, next(versions, "") if isinstance(event, Apply | InitApply) else "")
            if isinstance(event, Init):
                self._relists.value += self._begun
                self._begun = self._listing = True
            elif isinstance(event, InitDone):
                self.synced = True
                self._listing = False
            await self._give_way()
        if self.watch.trouble != self._told:
            self._report(self.watch.trouble)

    async def _give_way(self) -> None:
        """Let others have their turn, if ours has been long enough."""
        if self._now() >= self._turn:
            await asyncio.sleep(0)
            self._turn = self._now() + SLICE

    def _note(self, event: Event, version: str) -> None:
        """Write down who has been heard of; ``version``: of the object that is there now, empty: none."""
        if self._ledger is None:
            return
        if isinstance(event, Init):
            self._ledger.begin()
        elif isinstance(event, InitDone):
            self._ledger.sweep()
        elif isinstance(event, Delete):
            self._ledger.forget(event.namespace, event.name)
        else:
            self._ledger.note(event.object.namespace, event.object.name, version)

    def _reject(self, reason: str) -> None:
        self._rejected.cell(self._kind, reason).value += 1

    def _report(self, trouble: str) -> None:
        """Tell of trouble, and of its end."""
        if trouble:
            self._tell(trouble)
        elif self.synced:
            self._told = ""
            self._log.info(f"{self._kind}: in step with the API server again")

    def _tell(self, trouble: str) -> None:
        now = self._now()
        if now - self._told_at >= (LOG_AGAIN if trouble == self._told else LOG_PAUSE):
            self._told = trouble
            self._told_at = now
            self._log.warning(f"{self._kind}: {trouble}")


def _versions(what: Input) -> tuple[str, ...]:
    """The resource version of each object that came."""
    if isinstance(what, Listed):
        return what.page.versions
    return (what.resource_version,) if isinstance(what, WatchEvent) else ()


async def _refusal(response: Response) -> Status:
    """Why the server refuses: its status, its Retry-After, and the Status object in the body if there is one."""
    try:
        said = decode_status(await response.read(limits.API_STATUS))
    except ApiError:
        said = Status()
    header = response.headers.get("retry-after", "")
    seconds = int(header) if header.isdecimal() and len(header) < 10 else 0
    return Status(response.status, said.reason, said.message, seconds or said.retry_after)
