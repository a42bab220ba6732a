"""cache: keep what the plugins behind it answered, and answer from that.

``cache [TTL] [ZONES…] { success CAPACITY [TTL [MINTTL]]; denial CAPACITY [TTL [MINTTL]]; prefetch AMOUNT [GAP [PCT%]];
serve_stale [DURATION [immediate [RESP_TTL [RECHECK]] | verify [TIMEOUT [RESP_TTL [RECHECK]]]]];
serve_stale_policy prefer_positive; servfail DURATION; disable success|denial [ZONES…]; keepttl }``

Replies to queries below ZONES (default: the block's) are kept for the least TTL in them, at least MINTTL (5) and at
most TTL seconds (success 3600, denial 1800), in two halves of CAPACITY (9984) entries, the least recently used going
first.  All records of a reply get that one TTL, counting down (``keepttl``: not).  The key is name, type, class, DO
and CD: whoever asks is given what somebody was answered, whatever plugins *behind* the cache make of the asker.

An entry that stands on facts (cluster objects, files) goes the moment one of them changes, answers and denials alike;
nothing that was computed before a change is kept after it.  What is true until a fact changes is left to the packet
cache, which repeats it; its TTL does not count down.

``prefetch`` asks again in the background for what was asked AMOUNT times without a gap of GAP (1m), when PCT (10%) of
its TTL is left.  ``serve_stale`` answers from entries that expired up to DURATION (1h) ago, with TTL RESP_TTL (0) and
an extended error: at once, refreshing in the background (``immediate``), or when asking again fails or takes longer
than TIMEOUT (``verify``); RECHECK is the pause after a failed refresh.  ``prefer_positive`` keeps an answer in use for
that time even when a denial has come since.  ``servfail`` (5s, at most 5m): how long failures are kept.  ``disable``:
keep no answers or no denials below ZONES.

Metrics, labels ``server, zones, view``: ``coredns_cache_requests_total``, ``coredns_cache_misses_total``,
``coredns_cache_prefetch_total``, ``coredns_cache_served_stale_total``, ``coredns_cache_drops_total`` (always 0: a reply
to another question never gets here); with ``type`` (``success``, ``denial``) too: ``coredns_cache_hits_total``,
``coredns_cache_evictions_total``, ``coredns_cache_entries``.  Without labels: ``kdns_cache_dropped_total`` (entries
gone because a fact changed), ``kdns_cache_refreshes_skipped_total``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from math import ceil
from typing import Final, TypeAlias

from msgspec.structs import replace

from kdns import limits
from kdns.corefile import Directive, only
from kdns.message import (
    AD,
    AXFR,
    EDE_CACHED_ERROR,
    EDE_STALE_ANSWER,
    EDE_STALE_NXDOMAIN,
    FOREVER,
    IXFR,
    NO_LEASE,
    NOERROR,
    NXDOMAIN,
    TC,
    Duty,
    Lease,
    Query,
    Reply,
)
from kdns.name import ROOT, longest_zone, to_text
from kdns.plugin import Next, Plugin, Site
from kdns.plugins.cache import verdict
from kdns.plugins.cache.counts import Counters, Counts
from kdns.plugins.cache.options import Options, behind, parse
from kdns.plugins.cache.store import Item, Key, Store, key_of, with_ttl

Kept: TypeAlias = tuple[Reply, Item | None]
"""A reply of the plugins behind, with the TTL that it gets here, and where it is kept."""

_TRANSFERS: Final = (AXFR, IXFR)
_CACHED_ERROR: Final = ((EDE_CACHED_ERROR, ""),)
_WILDCARD: Final = "zone/wildcard"
"""Metadata of the ``file`` plugin that a repeated reply should have too."""


class Cache(Plugin):
    """Answers from what it keeps, and keeps what is answered."""

    name = "cache"
    replayable = True
    blind = True
    inline = True

    def __init__(self, options: Options, site: Site, store: Store) -> None:
        self._options = options
        self.apart = (*options.zones, *options.no_success, *options.no_denial)
        self._everything = ROOT in options.zones
        self._stale = int(options.stale)
        self._site = site
        self._store = store
        self._answers, self._denials = store.success.items, store.denial.items
        self._plain_ttl = verdict.plain_ttl(options)
        self._facts = site.facts
        self._now = site.now
        self._wall = time.time
        self._log = site.logger(self.name)
        self._refreshes: dict[Item, asyncio.Task[Kept | None]] = {}
        self._counters = Counters(site.metrics, ",".join(to_text(zone) for zone in options.zones), store)
        self._skipped = site.metrics.counter(
            "kdns_cache_refreshes_skipped_total", "Refreshes not begun because too many were on their way."
        ).cell()
        self._unhook: Callable[[], None] = _nothing

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """See the module's manual."""
        options = parse(only(uses), site.zones)
        dropped = site.metrics.counter(
            "kdns_cache_dropped_total", "Cache entries dropped because a fact changed that they stood on."
        ).cell()
        # What is kept stays true over a reload as long as the plugins behind the cache say the same.
        key = (site.zones, site.bind, site.listens, behind(cls.name, site.directives))
        return cls(options, site, site.keep("cache", key, lambda: Store(site.facts, dropped)))

    async def start(self) -> None:
        """Take over the store."""
        self._store.bound(self._options.success.capacity, self._options.denial.capacity)
        for server in self._site.listens:
            self._counters.of(server)
        self._unhook = self._site.metrics.before_scrape(self._counters.show)

    async def stop(self) -> None:
        """End refreshes."""
        self._unhook()
        self._counters.hide()
        refreshes = list(self._refreshes.values())
        for task in refreshes:
            task.cancel()
        await asyncio.gather(*refreshes, return_exceptions=True)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer from the store, or pass on and keep the reply."""
        if query.type in _TRANSFERS:
            return await next(query)
        if not self._everything and longest_zone(query.name, self._options.zones) is None:
            return await next(query)
        counts = self._counters.servers.get(query.listener.server) or self._counters.of(query.listener.server)
        counts.requests.value += 1
        key = key_of(query)
        # Nothing may be cheaper here than a name that is asked for the first time.
        if key in self._answers or key in self._denials:
            now = self._now()
            item = self._find(key, now, counts)
            if item is not None:
                return await self._from_item(item, query, next, now, counts)
        counts.misses.value += 1
        epoch = self._facts.epoch
        reply = await next(query if query.flags & AD else _with_ad(query))
        if reply.lease.until == FOREVER:
            ttl = self._plain_ttl(reply)
            if ttl:
                return self._pass(query, reply, ttl, counts)
        reply, _ = self._keep(query, reply, epoch, counts)
        return _visible(reply, query) if reply.flags & AD else reply

    # --- finding -----------------------------------------------------------------------------------------------------

    def _find(self, key: Key, now: float, counts: Counts) -> Item | None:
        """The item to answer from, fresh or stale, counted as a hit; denials before answers, as CoreDNS looks."""
        success = self._store.success.get(key)
        if success is not None and self._stale and self._options.prefer_positive:
            best = success.best()
            if best is not None and now < best.expiry + self._stale:
                counts.answers.hits.value += 1
                return best
        if success is not None and now >= success.expiry + self._stale:
            success = None
        denial = self._store.denial.get(key)
        if denial is not None and now >= denial.expiry + (0 if denial.failure else self._stale):
            denial = None
        if denial is not None and (success is None or not denial.servfail):
            counts.denials.hits.value += 1
            return denial
        if success is not None:
            counts.answers.hits.value += 1
        return success

    def _due(self, item: Item, now: float) -> bool:
        """Count a use; whether the item is popular and soon to expire."""
        self._use(item, 1, now)
        return item.hits >= self._options.prefetch and now >= self._window(item)

    def _use(self, item: Item, times: int, now: float) -> None:
        if now - item.last > self._options.prefetch_gap:
            item.hits = 0
        item.hits += times
        item.last = now

    def _window(self, item: Item) -> float:
        """From when on the item may be prefetched."""
        return item.expiry - ceil(self._options.prefetch_percentage * item.ttl / 100)

    # --- answering ---------------------------------------------------------------------------------------------------

    async def _from_item(self, item: Item, query: Query, next: Next, now: float, counts: Counts) -> Reply:
        if now >= item.expiry:
            return await self._from_stale(item, query, next, counts)
        if self._options.prefetch and self._due(item, now):
            self._refresh_later(item, query, next, counts)
        return self._repeat(item, query, now, counts)

    def _repeat(self, item: Item, query: Query, now: float, counts: Counts) -> Reply:
        """The reply that an item holds, at its age, with the lease for repeating it."""
        options = self._options
        until = item.expiry
        duty: Duty = (counts.denials if item.half is self._store.denial else counts.answers).replayed
        if options.prefetch:
            until, duty = self._until_window(item, now, duty)
        lease = Lease(until, item.facts, False, not options.keep_ttl, (duty,))
        ttl = item.ttl if options.keep_ttl else min(item.ttl, ceil(item.expiry - now))
        return self._shown(item, query, ttl, lease, _CACHED_ERROR if item.servfail else ())

    def _until_window(self, item: Item, now: float, duty: Duty) -> tuple[float, Duty]:
        """With prefetching, replays end when the window opens, and after a gap: uses must be known by then."""
        window = self._window(item)
        if now >= window:
            return 0.0, duty
        # Whole seconds before the expiry, so that replays age at the same moments as the item.
        until = min(window, item.expiry - ceil(item.expiry - now - self._options.prefetch_gap))

        def count(replays: int, query_octets: int, reply_octets: int) -> None:
            duty(replays, query_octets, reply_octets)
            self._use(item, replays, min(self._now(), until))

        return until, count

    def _shown(self, item: Item, query: Query, ttl: int, lease: Lease, ede: tuple[tuple[int, str], ...]) -> Reply:
        if item.wildcard is not None and query.metadata is not None:
            query.metadata[_WILDCARD] = item.wildcard
        reply = replace(with_ttl(item.reply, ttl), flags=item.flags, lease=lease, ede=ede)
        return _visible(reply, query)

    async def _from_stale(self, item: Item, query: Query, next: Next, counts: Counts) -> Reply:
        """Answer from an expired item, unless asking again first is wanted and works."""
        options = self._options
        refresh = self._refreshes.get(item)
        if refresh is None and self._now() >= item.retry:
            refresh = self._refresh_later(item, query, next, counts)
        elif options.recheck:
            refresh = None
        if refresh is not None and options.verify:
            await asyncio.wait((refresh,), timeout=options.verify_timeout or None)
            kept = refresh.result() if refresh.done() and not refresh.cancelled() else None
            if kept is not None:
                reply, new = kept
                # As CoreDNS has it: after a timeout could have struck, the new reply comes out of the cache.
                if new is not None and options.verify_timeout:
                    return self._repeat(new, query, self._now(), counts)
                return _visible(reply, query)
        counts.stale.value += 1
        ttl = options.stale_ttl or (item.ttl if options.keep_ttl else 0)
        code = EDE_STALE_NXDOMAIN if item.reply.rcode == NXDOMAIN else EDE_STALE_ANSWER
        return self._shown(item, query, ttl, Lease(0.0, item.facts), ((code, ""),))

    # --- keeping -----------------------------------------------------------------------------------------------------

    def _keep(self, query: Query, reply: Reply, epoch: int, counts: Counts) -> Kept:
        """Give a reply the TTL that it gets here, and keep it if it may be kept."""
        if reply.drop:
            return reply, None
        ttl = 0 if query.do else self._plain_ttl(reply)
        if ttl:
            kind = verdict.ANSWER if reply.answer else verdict.DENIAL
        else:
            kind = verdict.classify(query, reply, self._wall)
            ttl = verdict.lifetime(reply, kind, self._options)
        reply = with_ttl(reply, ttl)
        lease = reply.lease
        wanted = self._wants(query, kind)
        if lease.until:
            # Who repeats it does in our name what we would do; counted as what it would be found to be here.
            half = counts.answers if kind in (verdict.ANSWER, verdict.REFERRAL) else counts.denials
            duty = half.replayed if wanted else counts.missed
            reply = replace(reply, lease=replace(lease, duties=(*lease.duties, duty)))
            # What is true until a fact changes could not become cheaper or better here, and a flood of names that are
            # known not to exist does not push out what had to be fetched.
            wanted = wanted and lease.until != FOREVER
        current = epoch == self._facts.epoch or not lease.facts
        if not (wanted and ttl and current and verdict.storable(query, reply, kind)):
            return reply, None
        # Not repeated as it is: the next asker gets it out of the cache, with other flags and metric labels.
        if reply.lease is not NO_LEASE:
            reply = replace(reply, lease=Lease(0.0, lease.facts))
        return reply, self._put(query, reply, kind, ttl, counts)

    def _pass(self, query: Query, reply: Reply, ttl: int, counts: Counts) -> Reply:
        """What `_keep` does for plain answers and denials that are true until a fact changes, only sooner."""
        if reply.answer:
            records, owed, disabled = reply.answer, counts.answers.owed, self._options.no_success
        else:
            records, owed, disabled = reply.authority, counts.denials.owed, self._options.no_denial
        if disabled and longest_zone(query.name, disabled) is not None:
            owed = (counts.missed,)
        for record in records:
            if record.ttl != ttl:
                reply = with_ttl(reply, ttl)
                break
        lease = reply.lease
        return replace(reply, lease=replace(lease, duties=lease.duties + owed if lease.duties else owed))

    def _wants(self, query: Query, kind: int) -> bool:
        """Whether replies of this kind may be kept for this name."""
        options = self._options
        disabled = options.no_success if kind in (verdict.ANSWER, verdict.REFERRAL) else options.no_denial
        return not disabled or longest_zone(query.name, disabled) is None

    def _put(self, query: Query, reply: Reply, kind: int, ttl: int, counts: Counts) -> Item:
        kept = replace(reply, ede=(), plugin=self.name, error="", options=(), report=None)
        item = Item(key_of(query), kept, ttl, self._now())
        if query.metadata is not None:
            item.wildcard = query.metadata.get(_WILDCARD)
        store = self._store
        half, cells = store.denial, counts.denials
        if kind in (verdict.ANSWER, verdict.REFERRAL):
            half, cells = store.success, counts.answers
            self._replace_denial(query, item)
        elif kind == verdict.DENIAL and not self._options.prefer_positive:
            store.success.drop(item.key)
        evicted = half.evicted
        half.put(item)
        cells.evictions.value += half.evicted - evicted
        return item

    def _replace_denial(self, query: Query, item: Item) -> None:
        """The newest reply counts; with ``prefer_positive`` only one that answers, else the last that did is held."""
        if self._options.prefer_positive:
            item.answering = verdict.answers(query, item.reply)
            before = self._store.success.get(item.key)
            if not item.answering:
                item.keep_good(before.best() if before is not None else None)
                return
        self._store.denial.drop(item.key)

    # --- refreshing --------------------------------------------------------------------------------------------------

    def _refresh_later(self, item: Item, query: Query, next: Next, counts: Counts) -> asyncio.Task[Kept | None] | None:
        """Refresh an item in the background, for the one who asked; None when that is not to be now."""
        if item in self._refreshes or self._now() < item.retry:
            return None
        if len(self._refreshes) >= limits.CACHE_REFRESHES:
            self._skipped.value += 1
            return None
        if query.metadata is not None:
            query = query.replace(metadata=dict(query.metadata))
        task = asyncio.get_running_loop().create_task(self._refresh(item, query, next, counts))
        self._refreshes[item] = task
        task.add_done_callback(lambda _: self._refreshes.pop(item, None))
        return task

    async def _refresh(self, item: Item, query: Query, next: Next, counts: Counts) -> Kept | None:
        """Ask again; None when that failed and the expired item is still the best there is."""
        stale = self._now() >= item.expiry
        if not (stale and self._options.verify):
            counts.prefetches.value += 1
        epoch = self._facts.epoch
        try:
            reply = await next(_with_ad(query))
        except Exception as error:  # noqa: BLE001 - in the background nobody else would learn of a plugin's bug
            self._log.error(f"refresh failed: {error!r}")
            item.retry = self._now() + self._options.recheck
            return None
        kept: Kept | None = None
        if not stale or self._usable(query, reply):
            kept = self._keep(query, reply, epoch, counts)
            if kept[1] is not None:
                kept[1].hits, kept[1].last = item.hits, self._now()
        elif self._options.prefer_positive and not reply.flags & TC:
            self._keep(query, reply, epoch, counts)
        item.retry = self._now() + self._options.recheck if stale and kept is None else 0.0
        return kept

    def _usable(self, query: Query, reply: Reply) -> bool:
        """Whether a reply is better than an expired item."""
        if reply.drop or reply.flags & TC:
            return False
        if self._options.prefer_positive:
            return verdict.answers(query, reply) and verdict.classify(query, reply, self._wall) == verdict.ANSWER
        kind = verdict.classify(query, reply, self._wall)
        return kind != verdict.OTHER and reply.rcode in (NOERROR, NXDOMAIN)


def _nothing() -> None:
    pass


def _with_ad(query: Query) -> Query:
    """The query with AD, so that the reply tells whether it is authentic (RFC 6840 section 5.7)."""
    return replace(query, flags=query.flags | AD)


def _visible(reply: Reply, query: Query) -> Reply:
    """The reply as this asker may see it: AD is for who sets DO or AD (RFC 6840 section 5.8)."""
    if reply.flags & AD and not (query.flags & AD or query.do):
        return reply.replace(flags=reply.flags & ~AD)
    return reply
