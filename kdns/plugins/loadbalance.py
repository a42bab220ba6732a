"""loadbalance: change the order of addresses in replies, so that clients that take the first spread their load.

``loadbalance [round_robin | weighted FILE] { reload DURATION; prefer CIDR... }``

* ``round_robin`` (the default): A and AAAA records in random order, MX records too, in each section; aliases come
  first, addresses and MX records last.
* ``weighted FILE``: for A, AAAA and SRV questions one address comes first, by chance and in proportion to its weight;
  the others stay.  FILE (relative to ``root``) holds names on lines of their own, each followed by lines of an address
  and a weight, 1 to 255; addresses without a line weigh 1; ``#`` begins a comment line.
* ``reload DURATION`` (``weighted`` only): how often to look whether FILE has changed, default 30s, 0s never.  A FILE
  that cannot be read is a warning unless it is never looked at again; what was read last stays.
* ``prefer CIDR...`` (``round_robin`` only): addresses in the first network come first, then those in the second, ….

Only NOERROR replies, and no zone transfers.  The packet cache rotates the addresses of what it repeats; what cannot be
spread by rotating is asked of the chain each time: weights, preferences among several alike, MX records.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from typing import Final, TypeAlias

from msgspec.structs import replace

from kdns import limits
from kdns.corefile import Directive
from kdns.files import Stamp, stamp_of
from kdns.message import AAAA, AXFR, CNAME, IXFR, MX, NOERROR, SRV, A, Query, Record, Reply
from kdns.name import BadName, Name, from_text, pack_address
from kdns.plugin import Next, Plugin, Site
from kdns.values import Network

Records: TypeAlias = tuple[Record, ...]
Weights: TypeAlias = dict[Name, dict[bytes, int]]

_ADDRESSES: Final = (A, AAAA)
_RELOAD: Final = 30.0
_MAPPED: Final = bytes(10) + b"\xff\xff"
"""Before an IPv4 address in IPv6 clothes (RFC 4291 section 2.5.5.2)."""


class BadWeights(ValueError):
    """A weight file that makes no sense; the message says where."""


class Loadbalance(Plugin):
    """Changes the order of records; the subclasses know how."""

    name = "loadbalance"
    replayable = True
    blind = True
    inline = True

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """See the module's manual; of several directives the last policy counts, as in CoreDNS."""
        plugin: Plugin | None = None
        preferred: list[Network] = []
        for use in uses:
            policy, *files = use.args or ("round_robin",)
            if policy == "weighted":
                plugin, preferred = _weighted(use, files, site), []
            elif policy != "round_robin":
                raise use.error(f"unknown policy: {policy}")
            elif files:
                raise use.error(f"unknown property for {policy}")
            else:
                plugin = None
                for option in use.options("prefer"):
                    preferred += [option.cidr(text) for text in option.args]
        return plugin or (Preferring(preferred) if preferred else RoundRobin())

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Pass on, and reorder what comes back."""
        reply = await next(query)
        if reply.rcode != NOERROR or (len(reply.answer) < 2 and not reply.authority and not reply.additional):
            return reply
        if query.type in (AXFR, IXFR):
            return reply
        return self.reorder(query, reply)

    def reorder(self, query: Query, reply: Reply) -> Reply:
        """The same records in another order, under a lease that allows for it."""
        raise NotImplementedError


class RoundRobin(Loadbalance):
    """Random order."""

    def reorder(self, query: Query, reply: Reply) -> Reply:
        """Shuffle every section."""
        groups = Groups(reply.answer)
        lease = reply.lease
        if lease.until:
            lease = lease.shrink(0.0) if len(groups.mail) > 1 else replace(lease, rotate=True)
        return reply.replace(
            answer=groups.shuffled(),
            authority=Groups(reply.authority).shuffled(),
            additional=Groups(reply.additional).shuffled(),
            lease=lease,
        )


class Preferring(Loadbalance):
    """Random order, but addresses in some networks first."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = [
            (
                len(network.network_address.packed),
                int(network.network_address),
                network.max_prefixlen - network.prefixlen,
            )
            for network in networks
        ]

    def reorder(self, query: Query, reply: Reply) -> Reply:
        """Shuffle, then sort by network; the authority section has no addresses to prefer."""
        groups = Groups(reply.answer)
        ranks = {self._rank(record) for record in groups.addresses}
        alike = len(ranks) < len(groups.addresses) or len(groups.mail) > 1
        return reply.replace(
            answer=self._sorted(groups),
            authority=Groups(reply.authority).shuffled(),
            additional=self._sorted(Groups(reply.additional)),
            lease=reply.lease.shrink(0.0) if alike else reply.lease,
        )

    def _sorted(self, groups: Groups) -> Records:
        addresses = sorted(shuffled(groups.addresses), key=self._rank)
        return (*groups.aliases, *addresses, *shuffled(groups.mail), *groups.rest)

    def _rank(self, record: Record) -> int:
        """The number of the first network that an address is in."""
        address = int.from_bytes(record.rdata, "big")
        for rank, (octets, network, host_bits) in enumerate(self._networks):
            if octets == len(record.rdata) and address >> host_bits == network >> host_bits:
                return rank
        return len(self._networks)


class Weighted(Loadbalance):
    """One address first, chosen by weight."""

    def __init__(self, path: str, reload: float, site: Site) -> None:
        self._path = path
        self._reload = reload
        self._log = site.logger(self.name)
        self._weights: Weights = {}
        self._stamp: Stamp | None = None
        self._polling: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Read the file if it is another one than before; raises OSError or BadWeights, keeping what was read last."""
        with open(self._path, "rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            if stamp == self._stamp:
                return
            data = file.read(limits.WEIGHT_FILE + 1)
        self._stamp = stamp
        self._weights = parse_weights(data, self._path)
        self._log.info(f"Successfully reloaded weight file {self._path}")

    async def start(self) -> None:
        """Look after the file from now on."""
        if self._stamp is None:
            self._log.warning(f"Failed to open weight file {self._path}. Will try again in {self._reload:g}s")
        if self._reload:
            self._polling = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Look no more."""
        if self._polling is not None:
            self._polling.cancel()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._reload)
            try:
                await asyncio.to_thread(self.load)
            except (OSError, BadWeights) as error:
                self._log.error(str(error))

    def reorder(self, query: Query, reply: Reply) -> Reply:
        """Move one address of the answer, and one of the additional section, to the front."""
        if query.type not in (A, AAAA, SRV):
            return reply
        answer, additional = Groups(reply.answer), Groups(reply.additional)
        if not (answer.addresses or additional.addresses):
            return reply
        chosen = len(answer.addresses) > 1 or len(additional.addresses) > 1
        return reply.replace(
            answer=self._first(answer) if answer.addresses else reply.answer,
            additional=self._first(additional) if additional.addresses else reply.additional,
            lease=reply.lease.shrink(0.0) if chosen else reply.lease,
        )

    def _first(self, groups: Groups) -> Records:
        addresses = groups.addresses
        weights = [self._weights.get(record.owner.lower(), {}).get(record.rdata, 1) for record in addresses]
        (first,) = random.choices(range(len(addresses)), weights)  # noqa: S311 - spreads load, hides nothing
        addresses[0], addresses[first] = addresses[first], addresses[0]
        return (*groups.aliases, *groups.rest, *addresses, *groups.mail)


class Groups:
    """The records of a section by what may be done with them."""

    __slots__ = ("addresses", "aliases", "mail", "rest")

    def __init__(self, records: Records) -> None:
        self.aliases: list[Record] = []
        self.addresses: list[Record] = []
        self.mail: list[Record] = []
        self.rest: list[Record] = []
        for record in records:
            type = record.type
            if type in _ADDRESSES:
                self.addresses.append(record)
            elif type == CNAME:
                self.aliases.append(record)
            elif type == MX:
                self.mail.append(record)
            else:
                self.rest.append(record)

    def shuffled(self) -> Records:
        """All records again: addresses and MX records each in random order."""
        return (*self.aliases, *self.rest, *shuffled(self.addresses), *shuffled(self.mail))


def shuffled(records: list[Record]) -> list[Record]:
    """The records in random order, each order as likely as any other."""
    if len(records) < 2:
        return records
    return sorted(records, key=lambda _: random.random())  # noqa: S311 - spreads load, hides nothing


def _weighted(use: Directive, files: list[str], site: Site) -> Weighted:
    if not files:
        raise use.error("missing weight file argument")
    if len(files) > 1:
        raise use.error("unexpected argument(s)")
    reload = _RELOAD
    for option in use.options("reload"):
        reload = option.duration(option.arg())
    plugin = Weighted(site.path(files[0]), reload, site)
    try:
        plugin.load()
    except OSError as error:
        if not reload:
            raise use.error(f"weight file open error: {error}") from error
    except BadWeights as error:
        raise use.error(str(error)) from error
    return plugin


def parse_weights(data: bytes, file: str) -> Weights:
    """The content of a weight file; raises BadWeights with file and line."""
    if len(data) > limits.WEIGHT_FILE:
        raise BadWeights(f"weight file {file} is over {limits.WEIGHT_FILE} octets")
    weights: Weights = {}
    domain: dict[bytes, int] | None = None
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if len(words) == 1:
                domain = weights.setdefault(_domain(words[0]), {})
            elif len(words) > 2:
                raise BadWeights(f'could not parse weight line:"{line.strip()}"')
            elif domain is None:
                raise BadWeights("missing domain name")
            else:
                # Of several lines for an address the first counts, as in CoreDNS.
                domain.setdefault(_address(words[0]), _weight(words[1]))
        except BadWeights as error:
            raise BadWeights(f"{file}:{number} - {error}") from None
    return weights


def _domain(word: str) -> Name:
    try:
        _address(word)
    except BadWeights:
        try:
            return from_text(word)
        except BadName as error:
            raise BadWeights(f'wrong domain name:"{word}": {error}') from None
    raise BadWeights(f'wrong domain name:"{word}" (Maybe a missing weight value?)')


def _address(word: str) -> bytes:
    try:
        return pack_address(word).removeprefix(_MAPPED)
    except BadName:
        raise BadWeights(f'wrong IP address:"{word}"') from None


def _weight(word: str) -> int:
    if word.isascii() and word.isdigit() and len(word) <= 10 and 1 <= int(word) <= 255:
        return int(word)
    raise BadWeights(f'wrong weight value:"{word}"')
