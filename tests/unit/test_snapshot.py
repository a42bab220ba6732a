"""Snapshots: what is written while all is well is remembered at the next start, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from kdns import limits
from kdns.cluster import snapshot, snapshotfile
from kdns.cluster.credentials import ApiError
from kdns.cluster.index import Index
from kdns.cluster.objects import KINDS, Object
from kdns.cluster.snapshot import Snapshot
from kdns.cluster.snapshotfile import Header, Pen, frame
from kdns.log import Logger
from kdns.metrics import Metrics
from tests.indextest import fill, kind_of, names_of, namespace, pod, put, relist, said, service, slice_of
from tests.support import Lines, captured_log, until

CONTENTS = dict.fromkeys(KINDS, "all")
WORLD: tuple[Object, ...] = (
    namespace("dev"),
    service("web.dev", "10.96.0.1"),
    service("peers.dev", ports=("http 80",)),
    slice_of("peers-a.dev", "10.1.0.1 h-0 peers-0", "10.1.0.2", of="peers"),
    slice_of("peers-b.dev", "10.1.0.3", of="peers"),
    pod("peers-0.dev", "10.1.0.1", "fd00::1", labels={"a": "b"}),
)
NOW = 1763718265.0


class Known:
    """What is written."""

    def __init__(self, *objects: Object) -> None:
        self.index = fill(Index(KINDS, True, True), *objects)
        self.changes = 1
        self.fine = True
        self.copied = 0

    def in_step(self) -> bool:
        return self.fine

    def copy(self, kind: str) -> Iterator[Object]:
        self.copied += 1
        return self.index.copy(kind)


class Place:
    """A file, what is said about it, and a clock."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "cluster.snapshot"
        self.now = NOW
        self.metrics = Metrics()
        self.made: list[Snapshot] = []
        self.identity = "cluster"

    def snapshot(self, max_age: float = 3600.0, contents: dict[str, str] = CONTENTS) -> Snapshot:
        def identity() -> str:
            if not self.identity:
                raise ApiError("nobody knows")
            return self.identity

        made = Snapshot(
            str(self.path), max_age, contents, identity, self.metrics, Logger("test"), wall=lambda: self.now
        )
        self.made.append(made)
        return made

    def metric(self, name: str) -> dict[str, float]:
        """The samples of a metric, by the labels after ``file``."""
        found: dict[str, float] = {}
        for line in self.metrics.expose().decode().splitlines():
            if line.startswith(f"kdns_kubernetes_snapshot_{name}{{"):
                labels, _, value = line.rpartition(" ")
                found[labels.partition(",")[2].rstrip("}")] = float(value)
        return found

    def reasons(self) -> dict[str, float]:
        return {label.removeprefix('reason="').rstrip('"'): n for label, n in self.metric("refusals_total").items()}


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    made = Place(tmp_path)
    yield made
    for one in made.made:
        one.close()


async def restored(one: Snapshot, kinds: tuple[str, ...] = KINDS) -> Index:
    index = Index(kinds, True, True)
    if not await one.restore(index):
        assert index.remembered == () and not any(index.counts().values())
    return index


# --- there and back --------------------------------------------------------------------------------------------------


async def test_what_is_known_is_remembered(place: Place, log: Lines) -> None:
    known = Known(*WORLD)
    assert await place.snapshot().write(known)
    place.now += 200
    one = place.snapshot()
    index = await restored(one)
    assert index.counts() == known.index.counts()
    assert set(index.remembered) == set(index.waiting) == set(KINDS)
    assert one.age == 200 and place.metric("age_seconds") == {"": 200.0}
    assert log.lines == [
        f"[WARNING] plugin/test: {place.path}: 1 namespaces, 2 services, 2 endpointslices, 1 pods, true 3m20s ago, "
        "stand in"
    ]
    # It is the same in every detail: a list of the same objects touches no fact but that all is known now.
    for kind in KINDS:
        objects = [found for found in WORLD if kind_of(found) == kind]
        assert set(index.copy(kind)) == set(known.index.copy(kind))
        assert relist(index, kind, objects) == {b"known/" + kind.encode()}
    assert index.remembered == index.waiting == ()


async def test_many_objects_go_in_many_frames(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "PIECE", 1000)
    names = [f"n{number}" for number in range(1234)]
    assert await place.snapshot().write(Known(*map(namespace, names)))
    with captured_log():
        index = await restored(place.snapshot())
    assert index.namespaces == {bytes([len(name)]) + name.encode() for name in names}


async def test_equal_parts_are_one_object(place: Place) -> None:
    await place.snapshot().write(Known(*WORLD))
    index = await restored(place.snapshot())
    web, peers = index.entries[b"\3web\3dev"].service, index.entries[b"\5peers\3dev"].service
    assert web is not None and peers is not None
    assert web.ports is peers.ports is index.entries[b"\5peers\3dev"].slices[0].ports


async def test_what_is_written_is_what_was_known_at_that_moment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes while the file is being written come in the next one, and tear nothing apart."""
    monkeypatch.setattr(snapshot, "FRAME", dict.fromkeys(KINDS, 1))
    monkeypatch.setattr(snapshot, "PIECE", 1)
    known = Known(namespace("dev"), *(slice_of(f"s-{n}.dev", f"10.1.0.{n}", of="s") for n in range(50)))
    writing = asyncio.create_task(place.snapshot().write(known))
    while known.copied < 2:
        await asyncio.sleep(0)
    for number in range(50):
        put(known.index, slice_of(f"s-{number}.dev", of="s"))
    assert await writing
    (entry,) = (await restored(place.snapshot())).entries.values()
    assert {part.addresses[-1] for part in entry.slices} == set(range(50))


# --- when it is not used ---------------------------------------------------------------------------------------------


async def test_none_yet(place: Place, log: Lines) -> None:
    await restored(place.snapshot())
    assert log.lines == [f"[INFO] plugin/test: no snapshot yet: {place.path}"]
    assert place.reasons() == {} and place.metric("age_seconds") == {}


@pytest.mark.parametrize(("age", "used"), [(-60, True), (-61, False), (0, True), (3600, True), (3601, False)])
async def test_age(place: Place, log: Lines, age: int, used: bool) -> None:
    await place.snapshot().write(Known(*WORLD))
    place.now += age
    index = await restored(place.snapshot(3600.0))
    assert bool(index.remembered) == used
    assert place.reasons() == ({} if used else {"old": 1})
    told = "1h0m1s old" if age > 0 else "from the future, going by our clock"
    if not used:
        text = f"{place.path}: {told}; max_age is 1h0m0s; the snapshot is not used"
        assert log.lines == [f"[ERROR] plugin/test: {text}"]


@pytest.mark.parametrize("taken", [float("nan"), float("inf"), -1.0, 1e300])
async def test_no_time_at_all(place: Place, log: Lines, taken: float) -> None:
    pen = Pen(str(place.path))
    pen.begin(Header("cluster", taken, CONTENTS))
    pen.commit()
    await restored(place.snapshot())
    assert place.reasons() == {"old": 1}


async def test_another_cluster(place: Place, log: Lines) -> None:
    await place.snapshot().write(Known(*WORLD))
    place.identity = "other"
    await restored(place.snapshot())
    assert log.matching(f"{place.path}: of another cluster: cluster, ours is other; the snapshot is not used")
    place.identity = ""
    await restored(place.snapshot())
    assert log.matching("it cannot be told which cluster is ours: nobody knows")
    assert place.reasons() == {"foreign": 2}


async def test_other_settings_cost_only_what_they_chose(place: Place, log: Lines) -> None:
    contents = {"namespaces": "all", "services": "all", "endpointslices": "all"}
    await place.snapshot(contents=contents).write(Known(*WORLD))
    index = await restored(place.snapshot(contents=CONTENTS | {"endpointslices": "with Pod names"}))
    assert set(index.remembered) == {"services", "namespaces"}
    assert index.counts() == {"namespaces": 1, "services": 2, "endpointslices": 0, "pods": 0}
    assert log.matching("its endpointslices were chosen by other settings and are left out")
    assert place.reasons() == {"settings": 1}
    assert said(names_of(index), "peers.dev.svc.cluster.local.") == ["SERVFAIL"]
    await restored(place.snapshot(contents=dict.fromkeys(KINDS, "x")))
    assert log.matching("made with settings that have nothing in common with ours")


async def test_damaged(place: Place, log: Lines) -> None:
    place.path.write_bytes(b"kdns snapshot 1\n and then nothing")
    await restored(place.snapshot())
    assert log.lines == [f"[ERROR] plugin/test: {place.path}: damaged: its checksum is wrong; the snapshot is not used"]
    assert place.reasons() == {"damaged": 1}


async def test_a_sum_that_is_right_on_objects_that_cannot_be(place: Place, log: Lines) -> None:
    """What had been handed on before is taken back."""
    pen = Pen(str(place.path))
    pen.begin(Header("cluster", NOW, CONTENTS))
    for kind in ("namespaces", "services", "endpointslices", "pods"):
        pen.write(frame(kind, [found for found in WORLD if kind_of(found) == kind]))
    pen.write(b"\0\0\0\3\0\x91\x90")
    pen.commit()
    await restored(place.snapshot())
    assert log.matching("made by somebody else") and place.reasons() == {"damaged": 1}


async def test_a_disk_that_does_not_answer(place: Place, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.snapshot().write(Known(*WORLD))
    monkeypatch.setattr(limits, "SNAPSHOT_TIME", 0.05)
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(snapshotfile.Reader):
        def __init__(self, path: str) -> None:
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            raise FileNotFoundError

    monkeypatch.setattr(snapshot, "Reader", Slow)
    await restored(place.snapshot())
    go_on.set()
    assert log.matching("not read in 0.05 s; the snapshot is not used") and place.reasons() == {"unreadable": 1}


async def test_kinds_that_nobody_watches_are_left_out(place: Place) -> None:
    await place.snapshot().write(Known(*WORLD))
    index = await restored(
        place.snapshot(contents={"namespaces": "all", "services": "all"}), ("namespaces", "services")
    )
    assert set(index.remembered) == {"namespaces", "services"} and index.counts()["pods"] == 0


# --- writing ---------------------------------------------------------------------------------------------------------


async def test_what_is_not_in_step_is_not_written(place: Place) -> None:
    known, one = Known(*WORLD), place.snapshot()
    known.fine = False
    assert not await one.write(known)
    assert not place.path.exists() and one.age is None


async def test_it_is_written_when_something_changed_and_to_show_that_it_is_true(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "TICK", 0.0)
    known, one = Known(*WORLD), place.snapshot(max_age=4 * 600.0)
    clock = 0.0
    one._now = lambda: clock

    async def looks() -> int:
        """How often it was written before it has looked again a few times."""
        before = known.copied
        for _ in range(200):
            await asyncio.sleep(0.0005)
        return (known.copied - before) // len(KINDS)

    one.keep(known)
    one.keep(known)
    assert await looks() == 1
    known.changes += 1
    assert await looks() == 0
    clock += snapshot.GAP
    assert await looks() == 1
    clock += snapshot.GAP
    assert await looks() == 0
    clock += snapshot.REFRESH
    assert await looks() == 1
    known.fine = False
    known.changes += 1
    clock += snapshot.GAP
    assert await looks() == 0
    known.fine = True
    assert await looks() == 1


async def test_writing_takes_a_hundredth_of_the_time(place: Place) -> None:
    one = place.snapshot()
    times = iter((0.0, 7.0))
    one._now = lambda: next(times, 7.0)
    assert await one.write(Known(*WORLD))
    assert one._gap == 700.0


async def test_the_last_one(place: Place) -> None:
    known, one = Known(*WORLD), place.snapshot()
    await asyncio.gather(one.write_last(known), one.write_last(known))
    written = place.path.stat().st_ino
    await one.write_last(known)
    assert place.path.stat().st_ino == written
    known.changes += 1
    await one.write_last(known)
    assert place.path.stat().st_ino != written


async def test_the_last_one_does_not_hold_up_the_end(place: Place, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "AT_END", 0.05)
    go_on = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(Pen):
        def commit(self) -> None:
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            raise OSError("gone")

    monkeypatch.setattr(snapshot, "Pen", Slow)
    await place.snapshot().write_last(Known(*WORLD))
    assert log.matching("not written in 0.05 s at the end")
    go_on.set()
    await until(lambda: not os.listdir(place.path.parent))


async def test_a_disk_that_cannot_be_written_to_is_one_warning(
    place: Place, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: str) -> Pen:
        raise OSError(30, os.strerror(30), path)

    known, one = Known(*WORLD), place.snapshot()
    monkeypatch.setattr(snapshot, "Pen", read_only)
    for _ in range(3):
        assert not await one.write(known)
    assert log.lines == [
        f"[WARNING] plugin/test: {place.path}: cannot be written: Read-only file system; "
        "the snapshot before it, if any, stays"
    ]
    assert place.reasons() == {"unwritable": 3} and place.metric("last_write_timestamp_seconds") == {"": 0.0}
    monkeypatch.undo()
    with captured_log() as again:
        assert await one.write(known)
    assert again.lines == [f"[INFO] plugin/test: {place.path}: written again"]
    assert place.metric("last_write_timestamp_seconds") == {"": NOW}
    assert place.metric("size_bytes") == {"": float(place.path.stat().st_size - 32)}


async def test_a_file_of_somebody_else_is_left_alone(place: Place, log: Lines) -> None:
    place.path.write_text("precious")
    assert not await place.snapshot().write(Known(*WORLD))
    assert place.path.read_text() == "precious"
    assert log.matching("not a snapshot of kdns: it is left as it is") and place.reasons() == {"foreign": 1}


async def test_who_cannot_tell_the_cluster_writes_nothing(place: Place, log: Lines) -> None:
    place.identity = ""
    assert not await place.snapshot().write(Known(*WORLD))
    assert log.matching("cannot be written: nobody knows")
    await until(lambda: not os.listdir(place.path.parent))


async def test_a_disk_that_does_not_answer_is_told_of_and_asked_no_more_until_it_does(
    place: Place, log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "TICK", 0.0)
    monkeypatch.setattr(snapshot, "GAP", 0.0)
    monkeypatch.setattr(limits, "SNAPSHOT_WRITE", 0.05)
    go_on, hung = threading.Event(), []

    class Hung(Pen):
        def begin(self, header: Header) -> None:
            hung.append(header)
            go_on.wait(30)
            raise OSError(5, os.strerror(5))

    monkeypatch.setattr(snapshot, "Pen", Hung)
    one = place.snapshot()
    one._gap = 0.0
    one.keep(Known(*WORLD))
    await until(lambda: place.reasons().get("unwritable", 0) > 3)
    assert len(hung) == 1 and one._worker._work_queue.qsize() < 3
    assert [line for line in log.lines if "the disk has not answered for 0.05 s" in line] == log.lines
    monkeypatch.setattr(snapshot, "Pen", Pen)
    go_on.set()
    await until(place.path.exists)
    await until(lambda: bool(log.matching("written again")))


async def test_a_bug_costs_one_snapshot(place: Place, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "TICK", 0.0)
    known, one = Known(*WORLD), place.snapshot()
    monkeypatch.setattr(Known, "copy", lambda self, kind: 1 // 0)
    monkeypatch.setattr(snapshot, "GAP", 0.0)
    one._gap = 0.0
    one.keep(known)
    await until(lambda: bool(log.matching("ZeroDivisionError")))
    monkeypatch.undo()
    await until(place.path.exists)


async def test_who_is_closed_while_writing_leaves_nothing_behind(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "TICK", 0.0)
    monkeypatch.setattr(snapshot, "FRAME", dict.fromkeys(KINDS, 1))
    known, one = Known(*map(namespace, (f"n{number}" for number in range(5000)))), place.snapshot()
    monkeypatch.setattr(snapshot, "SLICE", 0.0)
    one.keep(known)
    await until(lambda: bool(known.copied))
    assert os.listdir(place.path.parent) == ["cluster.snapshot.new"]
    place.made.remove(one)
    one.close()
    await until(lambda: not os.listdir(place.path.parent))
