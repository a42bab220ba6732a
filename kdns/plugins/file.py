"""file: serve zones from RFC 1035 master files.

``file DBFILE [ZONES...] { reload DURATION; reload_by_mtime; fallthrough [ZONES...] }``

Each of ZONES (default: those of the server block) is read from DBFILE, with the zone as its origin.  A relative DBFILE
is relative to the ``root`` directive's directory.  Answers are authoritative: wildcards, empty non-terminals,
delegations, CNAME and DNAME are served as RFC 1034, 4592 and 6672 say; RRSIG and NSEC records that are in the file are
given to askers that want DNSSEC; NSEC3 zones are refused.  CNAME targets outside the zone are resolved through the
server itself.  AXFR and IXFR are REFUSED.  Names outside all zones go to the next plugin, and are REFUSED where none
follows.

* ``reload DURATION``: how often to look for a new SOA serial (default 1m; 0 never).  With a zone file that cannot be
  read the new one is not taken and the old one serves on.  A file that is not there at start is a warning, and its zone
  SERVFAIL until it is, unless reload is 0.
* ``reload_by_mtime``: take the zone again when DBFILE, or a file that it includes, has changed, whatever the serial.
* ``fallthrough [ZONES...]``: names that do not exist go to the next plugin instead (all names, or those in ZONES).
  The options of one ``file`` count for those behind it in the server block, and ``fallthrough`` for all of them.

Metadata: ``zone/wildcard``, the wildcard that the answer was made from.

Metrics: ``kdns_file_refused_total``: looks at a zone file that found it changed, but not fit to be taken.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import msgspec

from kdns import limits, zonefile
from kdns.corefile import Directive
from kdns.files import Stamp, stamp, stamp_of
from kdns.log import Logger
from kdns.message import (
    AA,
    AXFR,
    EDE_NOT_READY,
    FOREVER,
    IN,
    IXFR,
    REFUSED,
    SERVFAIL,
    Lease,
    Query,
    Reply,
    failure,
)
from kdns.name import ROOT, Name, longest_zone, to_text
from kdns.plugin import EndOfChain, Next, Plugin, Site
from kdns.zone import BadZone, Found, Zone

_RELOAD: Final = 60.0
_MOST_CHASES: Final = 8
"""How often a question may come back here through CNAME chases (CoreDNS)."""


class Source:
    """One zone of one file; outlives a reload of the Corefile, and so does what was read."""

    def __init__(self, path: str, origin: Name) -> None:
        self.path, self.origin = path, origin
        self.zone: Zone | None = None
        """None: never read with success."""
        self.lease = Lease(FOREVER, (b"zone/%s/%s" % (os.fsencode(os.path.abspath(path)), origin),))
        """Of all answers that this zone gives or could have given."""
        self._stamps: dict[str, Stamp] = {}

    @property
    def serial(self) -> int | None:
        """Of the SOA; None before the first success."""
        return None if self.zone is None else self.zone.serial

    @property
    def changed(self) -> bool:
        """Whether any of the files that the zone was read from is another now, or it was never read."""
        return not self._stamps or any(stamp(path) != then for path, then in self._stamps.items())

    def read(self, known_serial: int | None = None, pause: Callable[[], None] | None = None) -> Reading:
        """Read it, in any thread; changes nothing.  Raises BadZone and OSError."""
        stamps: dict[str, Stamp] = {}
        loaded = zonefile.load(self.path, self.origin, partial(_open, stamps), known_serial, pause)
        return Reading(loaded, stamps)

    def take(self, reading: Reading) -> None:
        """Serve what was read from now on."""
        self.zone, self._stamps = reading.loaded.zone, reading.stamps


class Reading(msgspec.Struct, frozen=True):
    """What was read and the stamps that the files had."""

    loaded: zonefile.Loaded
    stamps: dict[str, Stamp]


class Served(msgspec.Struct, frozen=True):
    """A zone and how this configuration keeps it up to date."""

    source: Source
    interval: float
    """Seconds between looks at the file; 0 never."""
    by_mtime: bool
    first: Reading | None
    """Read in setup, to be taken at start; None: nothing has changed since, or there is no file yet."""


class File(Plugin):
    """Answers from zone files."""

    name = "file"
    replayable = True
    inline = True

    def __init__(self, site: Site, zones: dict[Name, Served], fallthrough: tuple[Name, ...]) -> None:
        self._site, self._zones, self._fallthrough = site, zones, fallthrough
        self._sources = {zone: served.source for zone, served in zones.items()}
        self._log = site.logger(self.name)
        self._refused = site.metrics.counter(
            "kdns_file_refused_total", "Looks at a zone file that found it changed, but not fit to be taken."
        ).cell()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """Read all zones that have changed; a missing one is only a warning if it is looked for again."""
        zones: dict[Name, Served] = {}
        interval, by_mtime = _RELOAD, False
        fallthrough: tuple[Name, ...] = ()
        for use in uses:
            file, *origins = use.between(1)
            for option in use.options("reload", "reload_by_mtime", "fallthrough", "upstream"):
                if option.name == "reload":
                    interval = option.duration(option.between(1)[0])
                elif option.name == "reload_by_mtime":
                    by_mtime = True
                elif option.name == "fallthrough":
                    fallthrough = option.zones(option.args, (ROOT,))
            path = site.path(file)
            for origin in use.zones(origins, site.zones):
                source = site.keep("zone", (path, origin), partial(Source, path, origin))
                first = _read_first(source, use, interval, site.logger(cls.name)) if source.changed else None
                zones[origin] = Served(source, interval, by_mtime, first)
        return cls(site, zones, fallthrough)

    async def start(self) -> None:
        """Serve what setup has read, and look for changes from now on."""
        for served in self._zones.values():
            if served.first is not None:
                self._take(served.source, served.first)
            if served.interval:
                self._tasks.append(asyncio.create_task(self._watch(served)))

    async def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- queries -----------------------------------------------------------------------------------------------------

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer for names in our zones."""
        source = self._source(query.name)
        # Zones are IN; other classes come this far only where `forward` lets them through, and are meant for it.
        if source is None or query.klass != IN:
            return Reply(REFUSED) if isinstance(next, EndOfChain) else await next(query)
        if query.type in (AXFR, IXFR):
            return Reply(REFUSED)
        zone = source.zone
        if zone is None:
            ede = ((EDE_NOT_READY, "zone not loaded"),)
            return failure(SERVFAIL, f"zone {to_text(source.origin)} is not loaded", ede=ede)
        if query.depth > _MOST_CHASES:
            return failure(SERVFAIL, "CNAME chain too long")
        found = zone.lookup(query.name, query.type, query.do)
        if found.passable and longest_zone(query.name, self._fallthrough) is not None:
            reply = await next(query)
            return reply.leased(reply.lease.shrink(FOREVER, source.lease.facts))
        lease = source.lease
        if found.chase:
            found, lease = await self._chase(query, zone, found, lease)
        if found.wildcard and query.metadata is not None:
            query.metadata["zone/wildcard"] = partial(to_text, found.wildcard)
        if found.rcode == SERVFAIL and not found.answer:
            return failure(SERVFAIL, "DNAME loop")
        flags = AA if found.authoritative else 0
        return Reply(found.rcode, found.answer, found.authority, found.additional, flags, lease, plugin=self.name)

    def _source(self, name: Name) -> Source | None:
        sources = self._sources
        at = 0
        while True:
            source = sources.get(name[at:])
            if source is not None or not name[at]:
                return source
            at += 1 + name[at]

    async def _chase(self, query: Query, zone: Zone, found: Found, lease: Lease) -> tuple[Found, Lease]:
        reply = await self._site.ask(query.renamed(found.chase))
        rcode = REFUSED if reply.drop else reply.rcode
        return zone.conclude(found, rcode, reply.answer, query.type, query.do), lease.meet(reply.lease)

    # --- keeping up to date ------------------------------------------------------------------------------------------

    def _take(self, source: Source, reading: Reading) -> None:
        source.take(reading)
        self._site.facts.drop(source.lease.facts)
        if reading.loaded.warning:
            self._log.warning(f"Zone {_quoted(source)}: {reading.loaded.warning}")

    async def _watch(self, served: Served) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(served.interval)
            before, complaint = complaint, await self._look(served)
            if complaint:
                self._refused.value += 1
                if complaint != before:
                    self._log.error(complaint)

    async def _look(self, served: Served) -> str:
        """Take the zone again if it has changed; returns what is wrong."""
        source = served.source
        if served.by_mtime and not source.changed:
            return ""
        try:
            known_serial = None if served.by_mtime else source.serial
            reading = await asyncio.to_thread(source.read, known_serial, self._pause)
        except OSError as error:
            return f"Failed to open zone {_quoted(source)}: {error.strerror}"
        except BadZone as error:
            return f'Parsing zone "{to_text(source.origin)}": {error}'
        if reading.loaded.zone is not None:
            self._take(source, reading)
            self._log.info(f"Successfully reloaded zone {_quoted(source)} with {source.serial} SOA serial")
        return ""

    def _pause(self) -> None:
        """In the reading thread: let the loop have its turn."""
        if self._stopped:
            raise BadZone("stopped")
        time.sleep(0)


def _read_first(source: Source, use: Directive, interval: float, log: Logger) -> Reading | None:
    try:
        return source.read()
    except BadZone as error:
        raise use.error(str(error)) from None
    except OSError as error:
        problem = f"open {source.path}: {error.strerror}"
        if not interval:
            raise use.error(problem) from None
        log.warning(f'Failed to open "{problem}": trying again in {interval:g}s')
        return None


def _quoted(source: Source) -> str:
    return f'"{to_text(source.origin)}" in "{source.path}"'


@contextmanager
def _open(stamps: dict[str, Stamp], path: str) -> Iterator[Iterable[str]]:
    with open(path, encoding="utf-8", errors=zonefile.OCTETS) as file:
        stamps[path] = stamp_of(os.fstat(file.fileno()))
        # A line without end must not be read whole.
        yield iter(partial(file.readline, limits.ZONE_ENTRY + 1), "")
