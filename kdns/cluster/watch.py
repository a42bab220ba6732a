"""How one kind of objects is listed, watched and listed again: a table of states without I/O and without a clock.

::

    STREAM ──end of the initial events──► WATCH ◄──last page── LIST        STREAM, LIST: the whole list is wanted
       └──────not known, broken──► LIST     │  ▲                           WATCH: changes since `version`
                                    ended,  ▼  │ version is known          PROBE: is `version` still the past of what
                                     lost  PROBE                                  the server has, or has it gone back?

    PROBE finds an older server, a watch is answered 410, the order of events is broken ──► a relist: STREAM or LIST

The shell (`kdns.cluster.api`) sends `Watch.request` after `Request.wait` seconds, feeds what comes back, and applies
the events that `Watch.feed` returns.  Whatever comes, the next request is there and no event is made that the server
did not vouch for: a list begins (Init) with its first good page and ends (InitDone) only with its true end, so a failed
or senseless one changes nothing but what it showed to exist.

- STREAM is a watch with ``sendInitialEvents`` (KEP-3157): objects come one by one.  Servers that do not know it, and
  proxies that swallow its closing bookmark, are asked for pages instead, from then on.
- PROBE exists because an API server on a restored etcd accepts a watch from a version of the future, and says nothing.
- A relist may have to wait (see `kdns.cluster.pace`); until then the watch is tried on.

Source: "Kubernetes API Concepts", sections on watches, bookmarks, 410 responses and streaming lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from random import random
from typing import Any, Final, TypeAlias

from msgspec import Struct

from kdns import limits
from kdns.cluster.ask import ALL, Asker, Request, Selection
from kdns.cluster.decoding import Page, Status, WatchEvent
from kdns.cluster.objects import Apply, Delete, Event, Init, InitApply, InitDone
from kdns.cluster.pace import LAST_GAP, Pace

STEADY: Final = 3.0
"""A stream that lived so many seconds ends a row of failures."""
BEGINNING: Final = 10.0
"""Seconds until the first line of a streamed list must have come, otherwise pages are asked for."""
SILENCE: Final = 5.0
"""Seconds from one object to the next until its end; a server that takes longer is not asked for a stream again."""
WHOLE: Final = 60.0
"""Seconds in which it must end, however many objects there are; slower ones are asked for in pages."""
LIFETIME: Final = (300, 600)
"""Seconds for which a watch is asked for: a random number between these."""
GRACE: Final = 15.0
"""Seconds by which a watch may outlive that."""
MUTE: Final = (2.5, 10.0)
"""A watch is given up when it has been silent for so many times the longest pause between two bookmarks of one stream,
and so many seconds.  A server that sends no bookmarks is never too silent."""
LARGEST: Final = {"endpointslices": 200, "importedslices": 200}
"""Objects of one page at most, by kind; the others 500."""
FIRST_LIMIT: Final = 100
"""Objects of the first page, until it is known how large they are."""
PAGE_SIZE: Final = 512 * 2**10
"""Octets of a page that is read without holding up queries (3 ms); the limit follows from the page before."""


# --- what comes back -------------------------------------------------------------------------------------------------


class Opened(Struct, frozen=True):
    """The watch is answered: lines will follow."""


class Listed(Struct, frozen=True):
    """A page came."""

    page: Page
    size: int
    """Octets of its text."""


class Oversize(Struct, frozen=True):
    """A page was larger than `limits.API_PAGE`."""


class Ended(Struct, frozen=True):
    """The server ended the watch as it should."""


class Late(Struct, frozen=True):
    """`Watch.deadline` has passed; the shell has hung up."""


class Refused(Struct, frozen=True):
    """The server answered with another HTTP status than 200."""

    status: Status


class Failed(Struct, frozen=True):
    """No connection, no answer in time, or it broke off."""

    text: str


class Nonsense(Struct, frozen=True):
    """A page or a line that cannot be read, and why.  After a line the stream may go on."""

    text: str


Input: TypeAlias = Opened | Listed | Oversize | WatchEvent | Ended | Late | Refused | Failed | Nonsense
Events: TypeAlias = Iterable[Event]


class State(Enum):
    """What the request that is out, or due, is for."""

    STREAM = 1
    LIST = 2
    PROBE = 3
    WATCH = 4


class Watch:
    """The state of one kind."""

    def __init__(self, kind: str, selection: Selection = ALL, chance: Callable[[], float] = random) -> None:
        self.kind = kind
        self.state = State.STREAM
        self.version = ""
        """The resource version up to which everything is known."""
        self.synced = False
        """A whole list has been seen."""
        self.trouble = ""
        """What is in the way, for people; empty: nothing."""
        self.open = False
        """Whether the shell is to read on from the stream that it has."""
        self.deadline = 0.0
        """When the shell hangs up an open stream and feeds `Late`."""
        self._asker = Asker(kind, selection)
        self._chance = chance
        self._pace = Pace(chance)
        self._streams = True  # the server can stream lists, as far as we know
        self._opened_at = 0.0
        self._lifetime = 0
        self._bookmark_at: float | None = None  # the last one of this stream
        self._rhythm = 0.0  # the longest pause between two
        self._begun = False  # Init is out, InitDone is not
        self._objects = 0
        self._continue = ""
        self._limit = FIRST_LIMIT
        self.request = self._ask(0.0)

    def feed(self, what: Input, now: float) -> Events:
        """Take what came back at ``now`` (monotonic seconds); what to apply, in this order."""
        return _TABLE[self.state, type(what)](self, what, now)

    def start_over(self, text: str, now: float) -> None:
        """Events were lost on the way to the index: list again."""
        self._forget_list()
        if self.state is State.WATCH or self.state is State.PROBE:
            self._doubt(text, now)
        self._again(text, now)

    @property
    def in_step(self) -> bool:
        """Whether changes are followed, and nothing that is known is in doubt."""
        return self.state is State.WATCH and self._pace.list_at is None

    def distrust(self, text: str, now: float) -> None:
        """What is known has turned out to be wrong: list again, as soon as there have not been too many lists."""
        if self.state is State.WATCH:
            self._doubt(text, now)

    def give_up(self, now: float) -> None:
        """The open watch has not told what it should have: let another one go on where it has come to."""
        if self.state is State.WATCH and self.open:
            self.deadline = now

    # --- a streamed list

    def _stream_opened(self, what: Opened, now: float) -> Events:
        self._begin_stream(now)
        self.deadline = now + BEGINNING
        return ()

    def _streamed(self, event: WatchEvent, now: float) -> Events:
        if event.type == "ERROR":
            return self._stream_refused(Refused(event.status or Status()), now)
        self._objects += 1
        if self._objects > limits.API_LIST:
            return self._too_many(now)
        if event.type == "ADDED":  # what else comes is news, and comes whether the end has been swallowed or not
            self.deadline = min(now + SILENCE, self._opened_at + WHOLE)
        events = self._init()
        if event.type == "DELETED":
            events.append(Delete(self.kind, event.namespace, event.name))
        elif event.object is not None:
            events.append(InitApply(self.kind, event.object))
        elif event.initial_end:
            events.append(self._done(event.resource_version, now))
            self._set_deadline(now)
        return events

    def _stream_refused(self, what: Refused, now: float) -> Events:
        if what.status.code not in (400, 405, 406, 415, 422):
            return self._stream_broken(Failed(_refusal(what.status)), now, what.status.retry_after)
        self._streams = False
        self._relist(0.0)
        return ()

    def _stream_failed(self, what: Failed, now: float) -> Events:
        """Pages can be taken up again where they broke off, a stream cannot."""
        return self._stream_broken(what, now) if self._objects else self._failed(what, now)

    def _stream_broken(self, what: Input, now: float, after: int = 0) -> Events:
        if isinstance(what, Late) and self._objects:
            self._streams = False
        self._again(_text(what), now, after)
        self._forget_list()
        self._turn_to(State.LIST)
        return ()

    # --- a list in pages

    def _listed(self, what: Listed, now: float) -> Events:
        page = what.page
        self._objects += len(page.objects) + len(page.odd)
        if self._objects > limits.API_LIST:
            return self._too_many(now)
        events = self._init()
        events += [InitApply(self.kind, found) for found in page.objects]
        fitting = self._limit * PAGE_SIZE // max(what.size, 1)
        self._limit = max(1, min(LARGEST.get(self.kind, 500), fitting))
        self._continue = page.continue_
        if not page.continue_:
            events.append(self._done(page.resource_version, now))
        self.request = self._ask(0.0)
        return events

    def _list_shrinks(self, what: Oversize, now: float) -> Events:
        if self._limit == 1:
            return self._list_broken(Nonsense("one object is larger than a page may be"), now)
        self._limit //= 2
        self.request = self._ask(0.0)
        return ()

    def _list_refused(self, what: Refused, now: float) -> Events:
        if what.status.code in (400, 410):  # the token is no longer known, or never was
            self._forget_list()
        return self._refused(what, now)

    def _list_broken(self, what: Nonsense, now: float) -> Events:
        self._forget_list()
        return self._again(what.text, now)

    def _too_many(self, now: float) -> Events:
        self._forget_list()
        return self._again(f"more than {limits.API_LIST} objects", now, int(LAST_GAP))

    def _init(self) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        return [Init(self.kind)]

    def _done(self, version: str, now: float) -> Event:
        """The list is whole: watch from its version on."""
        self._forget_list()
        self._pace.end_list(now)
        self.state = State.WATCH
        self.version = version
        self.synced = True
        self.trouble = ""
        return InitDone(self.kind)

    def _forget_list(self) -> None:
        self._begun = False
        self._objects = 0
        self._continue = ""

    # --- a watch

    def _watch_opened(self, what: Opened, now: float) -> Events:
        self._begin_stream(now)
        self._set_deadline(now)
        if self._pace.list_at is None:
            self.trouble = ""
        return ()

    def _changed(self, event: WatchEvent, now: float) -> Events:
        if event.type == "ERROR":
            return self._error(event.status or Status(), now)
        if event.type == "BOOKMARK":
            self._keep_rhythm(now)
        self._set_deadline(now)
        if older(event.resource_version, self.version):
            self._doubt(f"version {event.resource_version} came after {self.version}", now)
        elif event.resource_version:
            self.version = event.resource_version
        if event.type == "DELETED":
            return (Delete(self.kind, event.namespace, event.name),)
        if event.object is not None:
            return (Apply(self.kind, event.object),)
        return ()

    def _error(self, status: Status, now: float) -> Events:
        """An ERROR event: whatever it is, the next watch from here may well begin with the same."""
        if status.code != 429:
            self._doubt(_refusal(status), now)
        return self._refused(Refused(status), now)

    def _line_lost(self, what: Nonsense, now: float) -> Events:
        self._doubt(what.text, now)
        return ()

    def _watch_over(self, what: Ended, now: float) -> Events:
        if now - self._opened_at < self._lifetime - GRACE:  # as a server does that is about to stop
            return self._watch_lost(Failed(""), now)
        self._pace.steady()
        self.open = False
        self.request = self._ask(0.0)
        return ()

    def _watch_late(self, what: Late, now: float) -> Events:
        if self._pace.list_at is None or now < self._pace.list_at:
            return self._watch_lost(Failed("silent for too long"), now)
        self._relist(0.0)
        return ()

    def _watch_lost(self, what: Failed, now: float) -> Events:
        self._again(what.text, now)
        if self.state is State.WATCH:
            self._turn_to(State.PROBE)
        return ()

    def _watch_refused(self, what: Refused, now: float) -> Events:
        if what.status.code in (400, 410) or what.status.message.startswith("Too large resource version"):
            self._doubt(_refusal(what.status), now)
        return self._refused(what, now)

    def _doubt(self, text: str, now: float) -> None:
        """What is known may be wrong: a list is wanted."""
        self._complain(text)
        self._pace.want_list(now)
        self._set_deadline(now)

    # --- a probe

    def _probed(self, what: Listed, now: float) -> Events:
        version = what.page.resource_version
        if older(version, self.version):
            text = f"the server went back from version {self.version} to {version}"
            self._doubt(text, now)
            return self._again(text, now)
        self._turn_to(State.WATCH)
        return ()

    # --- what they share

    def _begin_stream(self, now: float) -> None:
        self.open = True
        self._opened_at = now
        self._bookmark_at = None

    def _keep_rhythm(self, now: float) -> None:
        if self._bookmark_at is not None:
            self._rhythm = max(self._rhythm, now - self._bookmark_at)
        self._bookmark_at = now

    def _set_deadline(self, now: float) -> None:
        """For a watch that has just been heard of."""
        self.deadline = self._opened_at + self._lifetime + GRACE
        if self._rhythm:
            self.deadline = min(self.deadline, now + max(MUTE[0] * self._rhythm, MUTE[1]))
        if self._pace.list_at is not None:
            self.deadline = min(self.deadline, self._pace.list_at)

    def _refused(self, what: Refused, now: float) -> Events:
        return self._again(_refusal(what.status), now, what.status.retry_after)

    def _failed(self, what: Input, now: float) -> Events:
        return self._again(_text(what), now)

    def _again(self, text: str, now: float, after: int = 0) -> Events:
        """Ask again after a failure; ``after``: seconds that the server wants us to wait."""
        self._complain(text)
        if self.open and now - self._opened_at >= STEADY:
            self._pace.steady()
        self.open = False
        wait = self._pace.pause(after)
        if self._pace.list_at is not None and now + wait >= self._pace.list_at:
            self._relist(max(self._pace.list_at - now, wait if after else 0.0))
        else:
            self.request = self._ask(wait)
        return ()

    def _complain(self, text: str) -> None:
        verb = "list" if self.state is State.STREAM or self.state is State.LIST else "watch"
        self.trouble = f"{verb}: {text}" if text else ""

    def _relist(self, wait: float) -> None:
        self._forget_list()
        self._pace.begin_list()
        self.open = False
        self.state = State.STREAM if self._streams else State.LIST
        self.request = self._ask(wait)

    def _turn_to(self, state: State) -> None:
        """Another request instead of the one that is due, at the same time."""
        self.state = state
        self.request = self._ask(self.request.wait if state is not State.WATCH else 0.0)

    def _ask(self, wait: float) -> Request:
        """The request of the present state."""
        if self.state is State.PROBE:
            return self._asker.probe(wait)
        if self.state is State.LIST:
            return self._asker.page(self._limit, self._continue, wait)
        self._lifetime = LIFETIME[0] + int((LIFETIME[1] - LIFETIME[0]) * self._chance())
        if self.state is State.STREAM:
            return self._asker.stream(self._lifetime, wait)
        return self._asker.changes(self.version, self._lifetime, wait)


_TABLE: Final[dict[tuple[State, type], Callable[[Watch, Any, float], Events]]] = {
    (State.STREAM, Opened): Watch._stream_opened,
    (State.STREAM, WatchEvent): Watch._streamed,
    (State.STREAM, Refused): Watch._stream_refused,
    (State.STREAM, Nonsense): Watch._stream_broken,
    (State.STREAM, Ended): Watch._stream_broken,
    (State.STREAM, Late): Watch._stream_broken,
    (State.STREAM, Failed): Watch._stream_failed,
    (State.LIST, Listed): Watch._listed,
    (State.LIST, Oversize): Watch._list_shrinks,
    (State.LIST, Refused): Watch._list_refused,
    (State.LIST, Nonsense): Watch._list_broken,
    (State.LIST, Failed): Watch._failed,
    (State.WATCH, Opened): Watch._watch_opened,
    (State.WATCH, WatchEvent): Watch._changed,
    (State.WATCH, Nonsense): Watch._line_lost,
    (State.WATCH, Refused): Watch._watch_refused,
    (State.WATCH, Ended): Watch._watch_over,
    (State.WATCH, Late): Watch._watch_late,
    (State.WATCH, Failed): Watch._watch_lost,
    (State.PROBE, Listed): Watch._probed,
    (State.PROBE, Oversize): Watch._failed,
    (State.PROBE, Refused): Watch._refused,
    (State.PROBE, Nonsense): Watch._failed,
    (State.PROBE, Failed): Watch._failed,
}
"""What may follow what.  Pages come only while a page is asked for, lines only from a stream."""


def older(version: str, than: str) -> bool:
    """Whether a resource version lies before another; versions that are no numbers are never older."""
    if not (version.isdecimal() and than.isdecimal() and len(version) < 21 and len(than) < 21):
        return False
    return int(version) < int(than)


def _refusal(status: Status) -> str:
    return " ".join(part for part in (str(status.code or ""), status.reason, status.message[:300]) if part) or "refused"


def _text(what: Input) -> str:
    if isinstance(what, Failed | Nonsense):
        return what.text
    return _TEXTS[type(what)]


_TEXTS: Final[dict[type, str]] = {
    Ended: "ended before the list was whole",
    Late: "fell silent before the list was whole",
    Oversize: "a page without end",
}
