"""Promises: what waits without a task, and what a task may await like a future."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from kdns.promise import Promise, Wakeups
from tests.support import until


def new(wakeups: Wakeups | None = None) -> Promise[str]:
    return Promise(wakeups or Wakeups())


async def waits_for(promise: Promise[str]) -> str:
    return await promise


async def test_a_task_gets_the_value() -> None:
    promise = new()
    task = asyncio.create_task(waits_for(promise))
    await asyncio.sleep(0)
    assert asyncio.isfuture(promise) and not promise.done()
    promise.keep("first")
    promise.keep("second")
    assert await task == "first"
    assert promise.done() and not promise.cancelled() and promise.result() == "first"


async def test_what_is_kept_already_is_not_waited_for() -> None:
    promise = new()
    promise.keep("x")
    with pytest.raises(StopIteration, match="x"):
        waits_for(promise).send(None)
    called: list[Any] = []
    promise.add_done_callback(called.append)
    await until(lambda: called == [promise])


async def test_a_coroutine_stepped_by_hand_goes_on_from_the_loop() -> None:
    promise = new()
    coroutine = waits_for(promise)
    assert coroutine.send(None) is promise
    out: list[str] = []

    def step(kept: Promise[str]) -> None:
        try:
            coroutine.send(None)
        except StopIteration as done:
            out.append(done.value)

    promise.add_done_callback(step)
    promise.keep("x")
    assert not out, "not in the middle of who keeps it"
    await until(lambda: out == ["x"])


async def test_cancelling_reaches_who_waits_and_nobody_else() -> None:
    wakeups = Wakeups()
    first, second = new(wakeups), new(wakeups)
    tasks = [asyncio.create_task(waits_for(promise)) for promise in (first, second)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    first.keep("late")
    second.keep("x")
    assert first.cancelled() and not first.cancel() and await tasks[1] == "x"


async def test_a_task_keeps_its_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def waits(promise: Promise[str]) -> str:
        variable.set("mine")
        await promise
        return variable.get()

    promise = new()
    task = asyncio.create_task(waits(promise))
    await asyncio.sleep(0)
    promise.keep("x")
    assert await task == "mine" and variable.get() == "none"


async def test_a_callback_can_be_taken_back() -> None:
    promise, called = new(), list[Any]()
    promise.add_done_callback(called.append)
    assert promise.remove_done_callback(print) == 0
    assert promise.remove_done_callback(called.append) == 1
    promise.keep("x")
    await asyncio.sleep(0.01)
    assert not called


async def test_there_is_no_value_before_it_is_kept() -> None:
    with pytest.raises(asyncio.InvalidStateError):
        new().result()


async def test_one_that_raises_does_not_keep_the_others_asleep() -> None:
    caught: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: caught.append(str(context["exception"])))
    wakeups, woken = Wakeups(), list[Promise[str]]()

    def broken(promise: Promise[str]) -> None:
        raise RuntimeError("a bug")

    promises = [new(wakeups) for _ in range(3)]
    for promise, callback in zip(promises, (woken.append, broken, woken.append), strict=True):
        promise.add_done_callback(callback)
        promise.keep("x")
    await until(lambda: woken == [promises[0], promises[2]])
    assert caught == ["a bug"]


async def test_who_holds_wakeups_runs_them() -> None:
    wakeups, woken = Wakeups(), list[Promise[str]]()
    promise = new(wakeups)
    promise.add_done_callback(woken.append)
    wakeups.held = True
    promise.keep("x")
    await asyncio.sleep(0.01)
    assert not woken
    wakeups.held = False
    wakeups.run()
    assert woken == [promise]
