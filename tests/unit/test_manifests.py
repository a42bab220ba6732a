"""A directory of manifests and an index that follows it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdns import limits
from kdns.cluster.ask import Selection
from kdns.cluster.manifests import BATCH, ManifestSource
from kdns.cluster.objects import Event, Init, InitApply, InitDone, ObjectError
from kdns.log import Logger
from kdns.metrics import Metrics
from kdns.values import BadValue
from tests.support import Lines, captured_log

KINDS = ("namespaces", "services", "endpointslices", "pods")
SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: 10.96.0.%d}\n"


class Known:
    """What an index would know, and how often it was told a list."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[bytes, object]] = {}
        self.lists: list[str] = []
        self._list: dict[bytes, object] | None = None
        self.changed = asyncio.Event()

    def apply(self, event: Event) -> None:
        if isinstance(event, Init):
            assert self._list is None
            self._list = {}
        elif isinstance(event, InitApply):
            assert self._list is not None
            self._list[event.object.name] = event.object
        else:
            assert isinstance(event, InitDone)
            assert self._list is not None
            self.objects[event.kind], self._list = self._list, None
            self.lists.append(event.kind)
            self.changed.set()

    def names(self, kind: str = "services") -> list[str]:
        return sorted(name.decode() for name in self.objects[kind])

    async def wait(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not done():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def lines() -> Iterator[Lines]:
    with captured_log() as found:
        yield found


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def source(tmp_path: Path, known: Known, metrics: Metrics, lines: Lines) -> Iterator[ManifestSource]:
    kinds = dict.fromkeys(KINDS, Selection())
    made = ManifestSource(str(tmp_path), kinds, known.apply, metrics, Logger("kubernetes"), interval=0.01)
    yield made
    made.close()


def refused(metrics: Metrics) -> float:
    value: float = metrics.counter("kdns_manifests_refused_total", "").cell().value
    return value


# --- the first time --------------------------------------------------------------------------------------------------


def test_load(tmp_path: Path, source: ManifestSource, known: Known) -> None:
    (tmp_path / "b.yaml").write_text(SERVICE % ("b", 2))
    (tmp_path / "a.yml").write_text(SERVICE % ("a", 1))
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "c.json").write_text('{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}}')
    (tmp_path / "README.md").write_text("not a manifest")
    (tmp_path / ".hidden.yaml").write_text("nor: this")
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "old.yaml").write_text(SERVICE % ("old", 9))
    assert all("has not been read" in text for text in source.status.values())
    source.load()
    assert known.names() == ["a", "b"]
    assert known.names("pods") == ["c"]
    assert known.names("namespaces") == ["default"]
    assert sorted(known.lists) == sorted(KINDS)
    assert source.status == dict.fromkeys(KINDS, "")


def test_a_service_comes_after_its_endpoints(tmp_path: Path, source: ManifestSource, known: Known) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    source.load()
    assert known.lists.index("endpointslices") < known.lists.index("services")


def test_load_hands_on_nothing_twice(tmp_path: Path, source: ManifestSource, known: Known) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    source.load()
    known.lists.clear()
    source.load()
    assert known.lists == []
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 22))
    source.load()
    assert known.lists == ["services"]


def test_an_empty_directory_is_an_empty_cluster(source: ManifestSource, known: Known) -> None:
    source.load()
    assert known.objects == {kind: {} for kind in KINDS}


def test_only_wanted_kinds_and_labels(tmp_path: Path, known: Known, metrics: Metrics) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    kinds = {"services": Selection(labels="tier=front"), "namespaces": Selection()}
    ManifestSource(str(tmp_path), kinds, known.apply, metrics, Logger("")).load()
    assert known.objects.keys() == kinds.keys()
    assert known.names() == []
    with pytest.raises(BadValue):
        ManifestSource(str(tmp_path), {"services": Selection(labels="=")}, known.apply, metrics, Logger(""))


def test_a_bom_is_no_text(tmp_path: Path, source: ManifestSource, known: Known) -> None:
    (tmp_path / "a.yaml").write_text("\ufeff" + SERVICE % ("a", 1), encoding="utf-8")
    source.load()
    assert known.names() == ["a"]


def test_no_directory(tmp_path: Path, known: Known, metrics: Metrics) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(ObjectError, match=f"{missing}: No such file or directory"):
        ManifestSource(missing, {}, known.apply, metrics, Logger("")).load()
    (tmp_path / "file").write_text("")
    with pytest.raises(ObjectError, match="file: Not a directory"):
        ManifestSource(str(tmp_path / "file"), {}, known.apply, metrics, Logger("")).load()


def test_what_makes_no_sense_is_refused_as_a_whole(
    tmp_path: Path, source: ManifestSource, known: Known, metrics: Metrics
) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    (tmp_path / "b.yaml").write_text("\n" + SERVICE % ("a", 2))
    with pytest.raises(ObjectError, match=r"b\.yaml:2: Service default/a: stands in .*a\.yaml:1, too"):
        source.load()
    assert known.objects == {}
    assert refused(metrics) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\xff\xfe", "a.yaml: not UTF-8"), (b"kind: x", "a.yaml:1: an object without apiVersion")],
)
def test_files_that_are_none(tmp_path: Path, source: ManifestSource, data: bytes, reason: str) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(ObjectError, match=reason):
        source.load()


def test_things_that_are_no_files(tmp_path: Path, source: ManifestSource) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ObjectError, match=r"a\.yaml: not a file"):
        source.load()


def test_a_file_that_goes_or_must_not_be_read(tmp_path: Path, source: ManifestSource) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ObjectError, match=r"a\.yaml: No such file"):
        source.load()


def test_a_directory_that_leads_back_up(tmp_path: Path, source: ManifestSource, known: Known) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    source.load()
    assert known.names() == ["a"]


@pytest.mark.parametrize(
    ("bound", "reason"),
    [("FILES", "more than 1 files"), ("FILE", "larger than 1 octets"), ("BYTES", "more than 1 octets")],
)
def test_bounds(
    tmp_path: Path, source: ManifestSource, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, bound: str, reason: str
) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("---\n")
    monkeypatch.setattr(limits, f"MANIFEST_{bound}", 1)
    with pytest.raises(ObjectError, match=reason):
        source.load()
    assert refused(metrics) == 1


# --- changes ---------------------------------------------------------------------------------------------------------


async def test_changes_are_followed(tmp_path: Path, source: ManifestSource, known: Known) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    source.load()
    source.start()
    source.start()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.yaml").write_text(SERVICE % ("b", 2))
    await known.wait(lambda: known.names() == ["a", "b"])
    (tmp_path / "a.yaml").unlink()
    await known.wait(lambda: known.names() == ["b"])
    (tmp_path / "new").write_text(SERVICE % ("c", 3))
    (tmp_path / "new").rename(tmp_path / "sub" / "b.yaml")
    await known.wait(lambda: known.names() == ["c"])


async def test_a_configmap_volume_that_is_swapped(tmp_path: Path, known: Known, metrics: Metrics) -> None:
    volume = tmp_path / "volume"
    for version, name in (("..1", "a"), ("..2", "b")):
        (volume / version).mkdir(parents=True)
        (volume / version / "web.yaml").write_text(SERVICE % (name, 1))
    (volume / "..data").symlink_to("..1")
    (volume / "web.yaml").symlink_to("..data/web.yaml")
    source = ManifestSource(str(volume), {"services": Selection()}, known.apply, metrics, Logger(""), interval=0.01)
    source.load()
    assert known.names() == ["a"]
    source.start()
    (volume / "..tmp").symlink_to("..2")
    (volume / "..tmp").rename(volume / "..data")
    await known.wait(lambda: known.names() == ["b"])
    source.close()


async def test_a_bad_edit_changes_nothing(
    tmp_path: Path, source: ManifestSource, known: Known, lines: Lines, metrics: Metrics
) -> None:
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    source.load()
    source.start()
    known.lists.clear()
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: [\n")
    async with asyncio.timeout(10):
        while not source.trouble["services"]:
            await asyncio.sleep(0.01)
    assert set(source.trouble.values()) == {source.trouble["services"]}
    assert "a.yaml:" in source.trouble["pods"]
    assert source.status == dict.fromkeys(KINDS, "")
    (line,) = lines.matching("a.yaml:")
    assert line.startswith("[ERROR] plugin/kubernetes: ")
    assert "what was read before stays in force" in line
    assert refused(metrics) == 1
    # The same complaint is not logged twice, another one is.
    (tmp_path / "b.yaml").write_text(SERVICE % ("b", 2))
    async with asyncio.timeout(10):
        while refused(metrics) < 2:
            await asyncio.sleep(0.01)
    assert len(lines.lines) == 1
    assert known.lists == []
    assert known.names() == ["a"]
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    await known.wait(lambda: known.names() == ["a", "b"])
    async with asyncio.timeout(10):
        while source.trouble["services"]:
            await asyncio.sleep(0.01)
    assert "are good again" in lines.lines[-1]


async def test_a_directory_that_goes_and_comes_back(
    tmp_path: Path, known: Known, metrics: Metrics, lines: Lines
) -> None:
    directory = tmp_path / "manifests"
    directory.mkdir()
    (directory / "a.yaml").write_text(SERVICE % ("a", 1))
    source = ManifestSource(str(directory), {"services": Selection()}, known.apply, metrics, Logger("x"), interval=0.01)
    source.load()
    source.start()
    directory.rename(tmp_path / "away")
    async with asyncio.timeout(10):
        while "No such file" not in source.trouble["services"]:
            await asyncio.sleep(0.01)
    assert known.names() == ["a"]
    assert len(lines.lines) == 1
    (tmp_path / "away").rename(directory)
    async with asyncio.timeout(10):
        while source.trouble["services"]:
            await asyncio.sleep(0.01)
    assert known.lists == ["services"]
    source.close()


async def test_a_file_that_is_still_being_written_is_not_read(
    tmp_path: Path, known: Known, metrics: Metrics, lines: Lines
) -> None:
    source = ManifestSource(str(tmp_path), {"services": Selection()}, known.apply, metrics, Logger(""), interval=0.2)
    source.load()
    source.start()
    with open(tmp_path / "a.yaml", "w", encoding="utf-8") as file:
        for part in ((SERVICE % ("a", 1))[:50], (SERVICE % ("a", 1))[50:]):
            file.write(part)
            file.flush()
            await asyncio.sleep(0.05)
    await known.wait(lambda: known.names() == ["a"])
    assert lines.lines == []
    source.close()


async def test_queries_get_their_turn_while_a_long_list_is_handed_on(
    tmp_path: Path, source: ManifestSource, known: Known
) -> None:
    source.load()
    source.start()
    text = "".join(f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}}}\n" for number in range(3 * BATCH))
    (tmp_path / "a.yaml").write_text(text)
    turns = 0
    while known.lists.count("pods") < 2:
        await asyncio.sleep(0)
        turns += known._list is not None
    assert turns >= 3
    assert len(known.names("pods")) == 3 * BATCH


async def test_only_what_changed_is_read_again(
    tmp_path: Path, source: ManifestSource, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdns.cluster import manifests

    read: list[str] = []
    original = manifests._entries
    monkeypatch.setattr(manifests, "_entries", lambda path: read.append(os.path.basename(path)) or original(path))
    for number, name in enumerate(("a", "b"), 1):
        (tmp_path / f"{name}.yaml").write_text(SERVICE % (name, number))
    source.load()
    source.start()
    (tmp_path / "b.yaml").write_text(SERVICE % ("bb", 2))
    await known.wait(lambda: known.names() == ["a", "bb"])
    assert read == ["a.yaml", "b.yaml", "b.yaml"]


async def test_what_changes_while_it_is_read_is_read_again(
    tmp_path: Path, source: ManifestSource, known: Known, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdns.cluster import manifests

    source.load()
    original = manifests._entries
    texts = [SERVICE % ("half", 1), SERVICE % ("a", 1)]

    def writing(path: str) -> tuple[manifests.Entry, ...]:
        try:
            return original(path)
        finally:
            if texts:
                Path(path).write_text(texts.pop(0))

    monkeypatch.setattr(manifests, "_entries", writing)
    source.start()
    (tmp_path / "a.yaml").write_text("kind: [")
    await known.wait(lambda: bool(known.names()))
    assert known.names() == ["a"]
    assert lines.lines == []


async def test_a_bug_is_not_silent(tmp_path: Path, metrics: Metrics, lines: Lines) -> None:
    def apply(event: Event) -> None:
        raise RuntimeError("a bug")

    source = ManifestSource(str(tmp_path), {"services": Selection()}, apply, metrics, Logger("x"), interval=0.01)
    source.start()
    (tmp_path / "a.yaml").write_text(SERVICE % ("a", 1))
    async with asyncio.timeout(10):
        while not source.trouble["services"]:
            await asyncio.sleep(0.01)
    assert "is followed no longer: RuntimeError('a bug')" in lines.lines[-1]


async def test_closed_means_closed(tmp_path: Path, source: ManifestSource) -> None:
    source.start()
    task = source._task
    assert task is not None
    source.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    source.close()
