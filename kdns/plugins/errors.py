"""errors: write a line for each query that failed.

``errors [stdout] [{ stacktrace; consolidate DURATION REGEXP [LEVEL] [show_first] }]``

A line reads ``[ERROR] plugin/errors: 2 example.org. A: TEXT``: the rcode, the question, and why it failed.  What was
answered SERVFAIL without a reason (as where an upstream server said so) is no error here.

``consolidate`` counts errors whose text matches REGEXP (RE2, anywhere in the text) instead of writing them, and writes
``N errors like 'REGEXP' occurred in last DURATION`` at LEVEL (warning, error, info, debug; default error) DURATION
after the first of them.  ``show_first`` writes the first one at once, and no sum when it stays alone.  The first
``consolidate`` that matches counts.  ``stdout`` and ``stacktrace`` are taken for the sake of old Corefiles.

All server blocks together write at most 100 such lines in a second; how many more there were is said in one line.

Metrics: ``kdns_errors_suppressed_total``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kdns import limits, log, message, name, values
from kdns.corefile import Directive, only
from kdns.message import Query, Reply
from kdns.metrics import Cell
from kdns.plugin import Next, Plugin, Site
from kdns.values import Regexp

_LEVELS: Final = {"warning": log.WARNING, "error": log.ERROR, "info": log.INFO, "debug": log.DEBUG}


class Errors(Plugin):
    """Looks at replies on their way out."""

    name = "errors"
    replayable = True
    blind = True
    inline = True

    def __init__(self, patterns: Sequence[Pattern], lines: Lines) -> None:
        self._patterns = patterns
        self._lines = lines

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``errors [stdout] [{ … }]``."""
        use = only(uses)
        if use.optional("stdout") != "stdout":
            raise use.error(f"invalid log file: {use.args[0]}")
        suppressed = site.metrics.counter(
            "kdns_errors_suppressed_total", "Errors that were not logged because there were too many."
        ).cell()
        lines = site.keep(cls.name, (), lambda: Lines(site.now, suppressed))
        patterns: list[Pattern] = []
        for option in use.options("stacktrace", "consolidate"):
            if option.name == "consolidate":
                patterns.append(_pattern(option, lines))
            else:
                option.exactly(0)
        return cls(patterns, lines)

    async def resolve(self, query: Query, next: Next) -> Reply:
        """Answer as the rest of the chain does; an answer with an error is written about, so it is not replayed."""
        reply = await next(query)
        if not reply.error:
            return reply
        self._write(query, reply)
        return reply.leased(reply.lease.shrink(0.0)) if reply.lease.until else reply

    async def stop(self) -> None:
        """Write the sums that are still owed."""
        for pattern in self._patterns:
            pattern.sum_up()

    def _write(self, query: Query, reply: Reply) -> None:
        level = log.ERROR
        for pattern in self._patterns:
            if pattern.matches(reply.error):
                if not pattern.shown():
                    return
                level = pattern.level
                break
        kind = message.type_text(query.type)
        self._lines.write(level, f"{reply.rcode} {name.to_text(query.name)} {kind}: {reply.error}")


def _pattern(option: Directive, lines: Lines) -> Pattern:
    """``consolidate DURATION REGEXP [LEVEL] [show_first]``."""
    period, regexp, *more = option.between(2, 4)
    level = ""
    show_first = False
    for word in more:
        if word == "show_first":
            show_first = True
        elif word not in _LEVELS:
            raise option.error(f"unknown option in consolidate: {word}")
        elif level:
            raise option.error("multiple log levels specified in consolidate")
        elif show_first:
            raise option.error("log level must come before show_first in consolidate")
        else:
            level = _LEVELS[word]
    seconds = option.duration(period, low=float("-inf"))
    return Pattern(seconds, option.regexp(regexp), level or log.ERROR, show_first, lines)


class Pattern:
    """One ``consolidate``: counts the errors that it matches, and sums them up."""

    def __init__(self, seconds: float, regexp: Regexp, level: str, show_first: bool, lines: Lines) -> None:
        self.level = level
        self._seconds, self._regexp, self._show_first, self._lines = seconds, regexp, show_first, lines
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def matches(self, text: str) -> bool:
        """Whether an error is of this kind."""
        return self._regexp.search(text) is not None

    def shown(self) -> bool:
        """Count one; whether it is to be written by itself."""
        self._count += 1
        if self._count > 1:
            return False
        self._timer = asyncio.get_running_loop().call_later(max(0.0, self._seconds), self.sum_up)
        return self._show_first

    def sum_up(self) -> None:
        """Write how many there were since the first, and begin anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        count, self._count = self._count, 0
        if count > self._show_first:
            period = values.duration_text(self._seconds)
            self._lines.write(self.level, f"{count} errors like '{self._regexp.pattern}' occurred in last {period}")


class Lines:
    """Writes at most `limits.ERROR_LINES` lines in a second; shared by all server blocks."""

    def __init__(self, now: Callable[[], float], suppressed: Cell) -> None:
        self._now = now
        self._suppressed = suppressed
        self._since = float("-inf")
        self._written = 0
        self._left_out = 0
        self._timer: asyncio.TimerHandle | None = None

    def write(self, level: str, text: str) -> None:
        """Write a line, or count it when there have been too many in this second."""
        if level == log.DEBUG and not log.debugging():
            return
        now = self._now()
        if now - self._since >= 1.0 and not self._left_out:
            self._since, self._written = now, 0
        # One line is left for the sum.
        if self._written < limits.ERROR_LINES - 1:
            self._written += 1
            self._log(level, text)
            return
        self._left_out += 1
        self._suppressed.value += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._since + 1.0 - now), self.sum_up)

    def sum_up(self) -> None:
        """Say how many were left out, and begin a new second."""
        self._timer = None
        left_out, self._left_out = self._left_out, 0
        if left_out:
            self._log(log.ERROR, f"{left_out} more errors in the last second")

    def close(self) -> None:
        """No server block logs errors any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.sum_up()

    def _log(self, level: str, text: str) -> None:
        log.emit(level, f"plugin/{Errors.name}: {text}")
