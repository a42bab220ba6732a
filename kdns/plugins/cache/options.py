"""The ``cache`` directive → Options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from kdns.corefile import Directive
from kdns.name import ROOT, Name
from kdns.plugin import ORDER
from kdns.values import BadValue, integer

_SHARDS: Final = 256
"""CoreDNS splits a capacity over so many shards of at least 4, all alike; so capacities are rounded down."""
_STALE: Final = 3600.0
_STALE_TTL: Final = 2.0**32 - 1
_FAILURE: Final = 300.0
"""RFC 2308 section 7.1: no failure is cached longer; the same for the time between attempts to refresh."""


class Half(msgspec.Struct, frozen=True):
    """How one of the two halves keeps its entries."""

    capacity: int
    most: int
    """Seconds: a TTL above counts as this."""
    least: int
    """Seconds: a TTL below counts as this."""


class Options(msgspec.Struct, frozen=True):
    """What the directive says; times in seconds."""

    zones: tuple[Name, ...]
    success: Half
    denial: Half
    servfail: float = 5.0
    prefetch: int = 0
    """Hits that make an entry popular; 0: no prefetching."""
    prefetch_gap: float = 60.0
    prefetch_percentage: int = 10
    stale: float = 0.0
    """For how long expired entries are still used; 0: not at all."""
    verify: bool = False
    """Ask again before using an expired entry."""
    verify_timeout: float = 0.0
    """0: as long as it takes."""
    stale_ttl: int = 0
    recheck: float = 0.0
    """How long not to ask again after a failed refresh."""
    prefer_positive: bool = False
    no_success: tuple[Name, ...] = ()
    """Below these no answers are kept."""
    no_denial: tuple[Name, ...] = ()
    keep_ttl: bool = False


def capacity(size: int) -> int:
    """CoreDNS's rounding: 10000 → 9984, at least 1024."""
    return max(size // _SHARDS, 4) * _SHARDS


def parse(use: Directive, zones: tuple[Name, ...]) -> Options:
    """Read the directive; ``zones`` are those of the server block.  Raises CorefileError."""
    args = use.args
    success, denial = Half(capacity(10_000), 3600, 5), Half(capacity(10_000), 1800, 5)
    if args and _is_integer(args[0]):
        ttl = _ttl(use, args[0])
        args = args[1:]
        success, denial = _with(success, most=ttl), _with(denial, most=ttl)
    options = Options(use.zones(args, zones), success, denial)
    policies = 0
    for option in use.options(*_READERS):
        options = _READERS[option.name](option, options)
        policies += option.name == "serve_stale_policy"
        if policies > 1:
            raise option.error("serve_stale_policy can only be specified once")
    if policies and not any(option.name == "serve_stale" for option in use.body or ()):
        raise use.error("serve_stale_policy requires serve_stale")
    return options


def behind(directive: str, block: Iterable[Directive]) -> tuple[Any, ...]:
    """What a server block says that shapes the replies which a plugin is given, as something to compare."""
    behind = ORDER[ORDER.index(directive) + 1 :]
    return tuple(_said(use) for use in block if use.name in behind or use.name not in ORDER or use.name == "root")


def _said(use: Directive) -> tuple[Any, ...]:
    return use.name, use.args, tuple(_said(line) for line in use.body or ())


def _is_integer(text: str) -> bool:
    try:
        integer(text)
    except BadValue:
        return False
    return True


def _with(half: Half, **changes: int) -> Half:
    return msgspec.structs.replace(half, **changes)


def _ttl(option: Directive, text: str) -> int:
    ttl = option.integer(text)
    if ttl <= 0:
        raise option.error(f"cache TTL can not be zero or negative: {ttl}")
    return ttl


def _half(option: Directive, half: Half) -> Half:
    # CoreDNS takes more words and ignores them; so no upper bound here.
    args = option.between(1)
    half = _with(half, capacity=capacity(option.integer(args[0])))
    if len(args) > 1:
        half = _with(half, most=_ttl(option, args[1]))
    if len(args) > 2:
        least = option.integer(args[2])
        if least < 0:
            raise option.error(f"cache min TTL can not be negative: {least}")
        half = _with(half, least=least)
    return half


def _success(option: Directive, options: Options) -> Options:
    return msgspec.structs.replace(options, success=_half(option, options.success))


def _denial(option: Directive, options: Options) -> Options:
    return msgspec.structs.replace(options, denial=_half(option, options.denial))


def _prefetch(option: Directive, options: Options) -> Options:
    args = option.between(1, 3)
    amount = option.integer(args[0])
    if amount < 0:
        raise option.error(f"prefetch amount should be positive: {amount}")
    options = msgspec.structs.replace(options, prefetch=amount)
    if len(args) > 1:
        options = msgspec.structs.replace(options, prefetch_gap=option.duration(args[1]))
    if len(args) > 2:
        if not args[2].endswith("%"):
            raise option.error(f"last character of percentage should be `%`, but is: '{args[2][-1:]}'")
        percentage = option.integer(args[2][:-1])
        if not 10 <= percentage <= 90:
            raise option.error(f"percentage should fall in range [10, 90]: {percentage}")
        options = msgspec.structs.replace(options, prefetch_percentage=percentage)
    return options


def _serve_stale(option: Directive, options: Options) -> Options:
    args = list(option.between(0, 5))
    stale = option.duration(args.pop(0)) if args else _STALE
    mode = args.pop(0).lower() if args else "immediate"
    if mode not in ("immediate", "verify"):
        raise option.error(f"invalid value for serve_stale refresh mode: {mode}")
    verify = mode == "verify"
    timeout = option.duration(args.pop(0)) if verify and args else 0.0
    stale_ttl = option.duration(args.pop(0), 0, _STALE_TTL) if args else 0.0
    if stale_ttl % 1:
        raise option.error("serve_stale response TTL must be a whole number of seconds")
    recheck = option.duration(args.pop(0), 0, _FAILURE) if args else 0.0
    if args:
        raise option.wrong_count()
    return msgspec.structs.replace(
        options, stale=stale, verify=verify, verify_timeout=timeout, stale_ttl=int(stale_ttl), recheck=recheck
    )


def _serve_stale_policy(option: Directive, options: Options) -> Options:
    policy = option.arg().lower()
    if policy != "prefer_positive":
        raise option.error(f"invalid serve_stale_policy: {policy}")
    return msgspec.structs.replace(options, prefer_positive=True)


def _servfail(option: Directive, options: Options) -> Options:
    return msgspec.structs.replace(options, servfail=option.duration(option.arg(), 0, _FAILURE))


def _disable(option: Directive, options: Options) -> Options:
    half, *zones = option.between(1)
    below = option.zones(zones, (ROOT,))
    if half == "success":
        return msgspec.structs.replace(options, no_success=below)
    if half == "denial":
        return msgspec.structs.replace(options, no_denial=below)
    raise option.error('cache type for disable must be "success" or "denial"')


def _keepttl(option: Directive, options: Options) -> Options:
    option.exactly(0)
    return msgspec.structs.replace(options, keep_ttl=True)


_READERS: Final[dict[str, Callable[[Directive, Options], Options]]] = {
    "success": _success,
    "denial": _denial,
    "prefetch": _prefetch,
    "serve_stale": _serve_stale,
    "serve_stale_policy": _serve_stale_policy,
    "servfail": _servfail,
    "disable": _disable,
    "keepttl": _keepttl,
}
