"""hosts: answer A, AAAA and PTR from a file like ``/etc/hosts``.

``hosts [FILE [ZONES...]] { LINES...; ttl SECONDS; no_reverse; reload DURATION; fallthrough [ZONES...];
fallthrough_unsupported }``

FILE (default ``/etc/hosts``; relative names are relative to the ``root`` directive's directory) holds lines of an
address and names; ``#`` begins a comment.  Only names in ZONES (default: those of the server block) count.  Any line
of the block that is no option, before ``fallthrough``, is such a line too, and adds to those of the file.  ``*.name``
stands for every name with one label in place of the star that has no line of its own for the address family.

A name with addresses has no other types (empty answer; without SOA, as CoreDNS has it).  Unknown names are SERVFAIL,
for want of a SOA, or fall through.  PTR is answered for every address that has names, and passed on otherwise.

* ``ttl SECONDS``: 1 to 65535, default 3600.
* ``no_reverse``: no PTR.
* ``reload DURATION``: how often to look whether FILE has changed (default 5s; 0 never).  A FILE that cannot be read is
  a warning; what was read last stays.
* ``fallthrough [ZONES...]``: unknown names go to the next plugin (all, or those in ZONES).
* ``fallthrough_unsupported``: so do other types, also of known names.

Metrics: ``coredns_hosts_entries{hostsfile}``, ``coredns_hosts_reload_timestamp_seconds``,
``kdns_hosts_skipped_entries{hostsfile}``: entries that are no names, or beyond `limits.HOSTS_PER_KEY`.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from kdns import limits
from kdns.corefile import Directive, only
from kdns.files import Stamp, stamp, stamp_of
from kdns.message import AA, AAAA, FOREVER, IN, PTR, SERVFAIL, A, Lease, Query, Record, Reply, failure
from kdns.name import ROOT, BadName, Name, from_text, longest_zone, pack_address, reverse_address
from kdns.plugin import Next, Plugin, Site

_DEFAULT_FILE: Final = "/etc/hosts"
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Before an IPv4 address in IPv6 clothes (RFC 4291 section 2.5.5.2)."""
_PAUSE_EVERY: Final = 64


class Table:
    """Names and addresses of one file, or of the lines in a Corefile."""

    def __init__(self) -> None:
        self.entries = 0
        """Address-name pairs, forward and reverse (CoreDNS counts so)."""
        self.skipped = 0
        """Names that are none, and pairs beyond `limits.HOSTS_PER_KEY`."""
        self._exact: tuple[dict[Name, bytes], dict[Name, bytes]] = ({}, {})
        self._wild: tuple[dict[Name, bytes], dict[Name, bytes]] = ({}, {})
        self._names: dict[bytes, list[Name]] = {}

    def add(self, name: Name, address: bytes, reverse: bool) -> None:
        """One more pair; ``reverse``: for PTR too."""
        six = len(address) > 4
        wild = name.startswith(b"\1*")
        held = (self._wild if wild else self._exact)[six]
        packed = held.get(name, b"")
        if len(packed) >= limits.HOSTS_PER_KEY * len(address):
            self.skipped += 1
            return
        held[name] = packed + address if packed else address
        self.entries += 1
        if reverse and not wild:
            names = self._names.setdefault(address, [])
            if len(names) < limits.HOSTS_PER_KEY:
                names.append(name)
                self.entries += 1
            else:
                self.skipped += 1

    def addresses(self, name: Name, six: bool) -> bytes:
        """All IPv4 addresses of a name, packed one behind another, or all IPv6 ones."""
        found = self._exact[six].get(name)
        if found is None and self._wild[six]:
            found = self._wild[six].get(b"\1*" + name[1 + name[0] :])
        return found or b""

    def names(self, address: bytes) -> Sequence[Name]:
        """All names of an address."""
        return self._names.get(address, ())


def read(
    lines: Iterable[str], zones: tuple[Name, ...], reverse: bool, pause: Callable[[], None] = lambda: None
) -> Table:
    """Lines → Table; what is no address or no name is passed over.  ``pause`` is called every few lines."""
    table = Table()
    # Block lists give the same address to a hundred thousand names.
    packed: dict[str, bytes | None] = {}
    for count, line in enumerate(lines):
        if not count % _PAUSE_EVERY:
            pause()
        text, *names = line.partition("#")[0].split() or ("",)
        if not names:
            continue
        if text not in packed:
            packed = {text: _address(text)}
        address = packed[text]
        if address is None:
            continue
        for word in names:
            try:
                # The dot also keeps "@" from being a name of its own.
                name = from_text(word if word.endswith(".") else word + ".")
            except BadName:
                table.skipped += 1
                continue
            if longest_zone(name, zones) is not None:
                table.add(name, address, reverse)
    return table


def _address(text: str) -> bytes | None:
    """Packed; an IPv6 zone (``%eth0``) does not matter, and an IPv4 address in IPv6 clothes is an IPv4 one."""
    try:
        return _bare(pack_address(text.partition("%")[0]))
    except BadName:
        return None


def _bare(address: bytes) -> bytes:
    return address[12:] if address.startswith(_MAPPED) else address


class Source:
    """One hosts file as it is read for some zones; outlives a reload of the Corefile, and so does what was read."""

    def __init__(self, path: str, zones: tuple[Name, ...], reverse: bool) -> None:
        self.path = path
        self.table = Table()
        self.stamp: Stamp | None = None
        """Of what was read last; None: nothing yet."""
        self.lease = Lease(FOREVER, (b"hosts/" + os.fsencode(os.path.abspath(path)),))
        self._zones, self._reverse = zones, reverse
        self._digest = b""

    def read(self, pause: Callable[[], None]) -> bool:
        """Read the file, in any thread; whether that made a difference.  Raises OSError and ValueError (too large)."""
        with open(self.path, "rb") as file:
            now = stamp_of(os.fstat(file.fileno()))
            data = file.read(limits.HOSTS_FILE + 1)
        if len(data) > limits.HOSTS_FILE:
            raise ValueError(f"over {limits.HOSTS_FILE} octets")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        changed = digest != self._digest
        if changed:
            # Invalid UTF-8 becomes what no name can hold.
            lines = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape")
            self.table = read(lines, self._zones, self._reverse, pause)
        self._digest, self.stamp = digest, now
        return changed


class Options(msgspec.Struct, frozen=True):
    """What the Corefile says."""

    ttl: int
    reverse: bool
    interval: float
    """Seconds between looks at the file; 0 never."""
    fallthrough: tuple[Name, ...]
    unsupported: bool
    """Other types fall through too."""
    lines: tuple[str, ...]


class Hosts(Plugin):
    """Answers from a hosts file."""

    name = "hosts"
    replayable = True
    inline = True

    def __init__(self, site: Site, source: Source, zones: tuple[Name, ...], options: Options) -> None:
        self._site, self._source, self._zones, self._options = site, source, zones, options
        self._inline = read(options.lines, zones, options.reverse)
        self._log = site.logger(self.name)
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        metrics = site.metrics
        self._entries = metrics.gauge(
            "coredns_hosts_entries", "The combined number of entries in hosts and Corefile.", ("hostsfile",)
        )
        self._skipped = metrics.gauge(
            "kdns_hosts_skipped_entries",
            "Entries of the hosts file and the Corefile that are no names, or too many.",
            ("hostsfile",),
        )
        self._time = metrics.gauge(
            "coredns_hosts_reload_timestamp_seconds", "The timestamp of the last reload of hosts file."
        ).cell()

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """Check everything but the content of the file, in which nothing can be wrong."""
        use = only(uses)
        path = _DEFAULT_FILE
        if use.args:
            path = site.path(use.args[0])
            _check(path, use, site)
        zones = use.zones(use.args[1:], site.zones)
        options = _options(use)
        source = site.keep("hosts", (path, zones, options.reverse), lambda: Source(path, zones, options.reverse))
        return cls(site, source, zones, options)

    async def start(self) -> None:
        """Read the file, and look for changes from now on."""
        await self._look("")
        self._differ()
        self._show()
        if self._options.interval:
            self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Look no more, and leave no answers behind that another configuration would not give."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._differ()

    def _differ(self) -> None:
        """Drop our facts unless the configuration that is in force, before us or after, says the same."""
        plugins = self._site.process.plugins
        others = [(p._source, p._options) for p in plugins if isinstance(p, Hosts) and p is not self]
        if (self._source, self._options) not in others:
            self._site.facts.drop(self._source.lease.facts)

    # --- queries -----------------------------------------------------------------------------------------------------

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer for names and addresses that we know."""
        if query.klass != IN:
            return await next(query)
        name = query.name
        if query.type == PTR:
            address = reverse_address(name)
            if address is None:
                return await next(query)
            return self._reply(self._pointers(name, _bare(address))) or await self._pass(query, next)
        if longest_zone(name, self._zones) is None:
            return await next(query)
        falls = longest_zone(name, self._options.fallthrough) is not None
        if query.type in (A, AAAA):
            reply = self._reply(self._addresses(name, query.type))
            if reply is not None:
                return reply
        elif falls and self._options.unsupported:
            return await self._pass(query, next)
        if self._known(name):
            return Reply(flags=AA, lease=self._source.lease, plugin=self.name)
        if falls:
            return await self._pass(query, next)
        # That there is no such name stands on the file, too: who keeps this must let it go when the file changes.
        return failure(SERVFAIL, "").leased(Lease(0.0, self._source.lease.facts))

    def _addresses(self, name: Name, type: int) -> tuple[Record, ...]:
        six = type == AAAA
        packed = self._source.table.addresses(name, six) + self._inline.addresses(name, six)
        size, ttl = 16 if six else 4, self._options.ttl
        return tuple(Record(name, type, ttl, packed[at : at + size]) for at in range(0, len(packed), size))

    def _pointers(self, name: Name, address: bytes) -> tuple[Record, ...]:
        names = (*self._source.table.names(address), *self._inline.names(address))
        return tuple(Record(name, PTR, self._options.ttl, target) for target in names)

    def _known(self, name: Name) -> bool:
        tables = (self._source.table, self._inline)
        return any(table.addresses(name, six) for table in tables for six in (False, True))

    def _reply(self, answer: tuple[Record, ...]) -> Reply | None:
        return Reply(answer=answer, flags=AA, lease=self._source.lease, plugin=self.name) if answer else None

    async def _pass(self, query: Query, next: Next) -> Reply:
        reply = await next(query)
        return reply.leased(reply.lease.shrink(FOREVER, self._source.lease.facts))

    # --- keeping up to date ------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(self._options.interval)
            complaint = await self._look(complaint)

    async def _look(self, before: str) -> str:
        """Read the file if it has changed; returns what is wrong, which is logged unless it was so ``before``."""
        source = self._source
        now = stamp(source.path)
        if now is not None and now == source.stamp:
            return ""
        try:
            changed = await asyncio.to_thread(source.read, self._pause)
        except (OSError, ValueError) as error:
            complaint = getattr(error, "strerror", None) or str(error)
            # Setup has warned of a file that was never there.
            if complaint != before and (source.stamp is not None or not isinstance(error, OSError)):
                self._log.warning(f"Hosts file {source.path} not read, the last content stays: {complaint}")
            return complaint
        if changed:
            self._site.facts.drop(source.lease.facts)
            self._show()
        return ""

    def _pause(self) -> None:
        """In the reading thread: let the loop have its turn."""
        if self._stopped:
            raise ValueError("stopped")
        time.sleep(0)

    def _show(self) -> None:
        source, tables = self._source, (self._source.table, self._inline)
        self._entries.cell(source.path).value = sum(table.entries for table in tables)
        self._skipped.cell(source.path).value = sum(table.skipped for table in tables)
        if source.stamp is not None:
            self._time.value = source.stamp[0] / 1e9


def _check(path: str, use: Directive, site: Site) -> None:
    log = site.logger(Hosts.name)
    try:
        if os.path.isdir(path):
            log.warning(f'Hosts file "{path}" is a directory')
        os.stat(path)
    except FileNotFoundError:
        log.warning(f"File does not exist: {path}")
    except OSError as error:
        raise use.error(f"unable to access hosts file '{path}': {error.strerror}") from None


def _options(use: Directive) -> Options:
    ttl, reverse, interval, unsupported = 3600, True, 5.0, False
    fallthrough: tuple[Name, ...] = ()
    lines: list[str] = []
    for option in use.options():
        if option.name == "fallthrough":
            fallthrough = option.zones(option.args, (ROOT,))
        elif option.name == "fallthrough_unsupported":
            option.exactly(0)
            unsupported = True
        elif option.name == "no_reverse":
            reverse = False
        elif option.name == "ttl":
            ttl = option.integer(option.between(1)[0], 1, 65535)
        elif option.name == "reload":
            interval = option.duration(option.arg())
        elif fallthrough:
            raise option.unknown()
        else:
            lines.append(" ".join((option.name, *option.args)))
    if unsupported and not fallthrough:
        raise use.error("fallthrough_unsupported requires fallthrough")
    return Options(ttl, reverse, interval, fallthrough, unsupported, tuple(lines))
