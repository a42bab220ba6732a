"""Waiting without a task: what kdns itself makes queries wait for is a Promise.

asyncio pays a task, a future and three trips through the loop's queue for each one that waits: a quarter of what a
forwarded query may cost.  A Promise calls back whoever follows it; a task may await it as it would a future.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")

Callback: TypeAlias = "Callable[[Promise[Any]], object]"


class Wakeups:
    """Wakes who waits for promises that are kept: from the event loop, so never in the middle of something else."""

    def __init__(self) -> None:
        self.held = False
        """Whoever sets it calls `run` by itself when it is done."""
        self._due: deque[Promise[Any]] = deque()

    def add(self, promise: Promise[Any]) -> None:
        """Wake who waits for this one."""
        if not self._due and not self.held:
            asyncio.get_running_loop().call_soon(self.run)
        self._due.append(promise)

    def run(self) -> None:
        """Wake them all, in turn; call it from the event loop only."""
        due, self._due = self._due, deque()
        try:
            while due:
                due.popleft().wake()
        finally:
            # Some are left only when one of them has raised, which is a bug: the others must not wait for ever.
            while due:
                self.add(due.popleft())


class Promise(Generic[T]):
    """A value that one coroutine waits for.

    It can be awaited in a task, because it behaves as `asyncio.isfuture` asks; and whoever steps a coroutine by hand
    gets the promise out of ``send`` and gives it a callback.
    """

    _asyncio_future_blocking = False
    _callback: Callback | None = None
    _context: Context | None = None
    _over = False
    _cancelled = False
    _value: T

    def __init__(self, wakeups: Wakeups) -> None:
        self._wakeups = wakeups

    def __await__(self) -> Generator[Promise[T], None, T]:
        """Wait for the value."""
        if not self._over:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def keep(self, value: T) -> None:
        """This is the value; ignored when there is one already or nobody wants it any more."""
        if not self._over:
            self._over = True
            self._value = value
            if self._callback is not None:
                self._wakeups.add(self)

    def wake(self) -> None:
        """Call who waits."""
        callback, self._callback = self._callback, None
        if callback is not None:
            if self._context is None:
                callback(self)
            else:
                self._context.run(callback, self)

    # -- as a future

    def add_done_callback(self, callback: Callback, *, context: Context | None = None) -> None:
        """Call this, with the promise, when it is over; there is one place for a callback."""
        self._callback, self._context = callback, context
        if self._over:
            self._wakeups.add(self)

    def remove_done_callback(self, callback: Callback) -> int:
        """Call nobody; returns how many callbacks that were."""
        found = self._callback == callback
        if found:
            self._callback = None
        return int(found)

    def cancel(self, msg: Any = None) -> bool:
        """Who waits gets a CancelledError; False when it is over already."""
        if self._over:
            return False
        self._over = self._cancelled = True
        if self._callback is not None:
            self._wakeups.add(self)
        return True

    def done(self) -> bool:
        """Whether it is kept or cancelled."""
        return self._over

    def cancelled(self) -> bool:
        """Whether nobody wants the value any more."""
        return self._cancelled

    def result(self) -> T:
        """The value.  Raises asyncio.CancelledError, and asyncio.InvalidStateError when there is none yet."""
        if self._cancelled:
            raise asyncio.CancelledError
        if not self._over:
            raise asyncio.InvalidStateError("the promise is not kept yet")
        return self._value

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this belongs to: the one that runs."""
        return asyncio.get_running_loop()
