"""A source and its index: settings, events, the metric of the way from a change to the answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from kdns.cluster import credentials
from kdns.cluster.ask import Selection
from kdns.cluster.cluster import LIVING, PROGRAMMING, Cluster, Settings
from kdns.cluster.credentials import ApiError
from kdns.cluster.objects import IMPORT_NAME, Apply, Init, InitApply, InitDone, ObjectError
from kdns.cluster.snapshot import Snapshot
from kdns.cluster.snapshotfile import Header, Pen, frame
from kdns.log import Logger
from kdns.message import Fact
from kdns.metrics import Metrics
from kdns.name import pack_address
from tests import fakeapi
from tests.indextest import service, slice_of
from tests.support import captured_log, until

MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: dev}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
"""


class Board:
    """Takes the dropped facts."""

    def __init__(self) -> None:
        self.facts: list[set[Fact]] = []
        self.metrics = Metrics()

    def cluster(self, settings: Settings, now: float = 1000.0) -> Cluster:
        return Cluster(settings, lambda facts: self.facts.append(set(facts)), self.metrics, Logger("test"), lambda: now)

    def programmed(self, kind: str) -> tuple[list[int], float]:
        family = self.metrics.histogram(
            "coredns_kubernetes_dns_programming_duration_seconds",
            "Histogram of the time (in seconds) it took to program a dns instance.",
            PROGRAMMING,
            ("service_kind",),
        )
        buckets = family.cell(kind)
        return buckets.counts, buckets.sum


def manifests(directory: Path) -> Settings:
    (directory / "a.yaml").write_text(MANIFEST)
    return Settings(manifests=str(directory))


def test_kinds() -> None:
    assert Settings().kinds == {
        "namespaces": Selection(),
        "services": Selection(),
        "endpointslices": Selection(),
    }
    chosen = Settings(labels="a=b", namespace_labels="c=d", endpoints=False, pods=True).kinds
    assert chosen == {
        "namespaces": Selection("c=d"),
        "services": Selection("a=b"),
        "pods": Selection("a=b", LIVING),
    }


def test_kinds_of_imports() -> None:
    imports = Settings(imports=True).kinds
    assert imports["serviceimports"] == Selection()
    assert imports["importedslices"] == Selection("multicluster.kubernetes.io/service-name")
    chosen = Settings(labels="a=b", namespace_labels="c=d", endpoints=False, imports=True).kinds
    assert set(chosen) == {"namespaces", "services", "serviceimports", "importedslices"}
    assert chosen["serviceimports"] == Selection()
    assert chosen["importedslices"] == Selection("a=b,multicluster.kubernetes.io/service-name")


async def test_imports_from_an_api_server_that_learns_of_them_late() -> None:
    """The CRD is not there at first: only the kind of objects that it defines is not known."""
    async with fakeapi.FakeApi() as api:
        absent = api.fault(resource="serviceimports", status=404)
        api.put("namespaces", fakeapi.namespace("dev"))
        slice = fakeapi.endpointslice("x", ["10.9.0.1"], "dev", labels={IMPORT_NAME: "db"})
        api.put("endpointslices", slice)
        api.put("endpointslices", fakeapi.endpointslice("y", ["10.9.0.2"], "dev"))
        cluster = Board().cluster(Settings(endpoint=api.url, imports=True))
        cluster.start()
        try:
            async with asyncio.timeout(10):
                while (
                    set(cluster.unsynced()) != {"serviceimports"} or "404" not in cluster.unsynced()["serviceimports"]
                ):
                    await asyncio.sleep(0.01)
            assert not cluster.synced.is_set()
            assert cluster.index.counts()["importedslices"] == 1
            absent.times = 0
            api.put("serviceimports", {"metadata": {"name": "db", "namespace": "dev"}, "spec": {"type": "Headless"}})
            await asyncio.wait_for(cluster.synced.wait(), 20)
        finally:
            cluster.close()
    assert b"\2db\3dev" in cluster.index.imports and cluster.unsynced() == {}


async def test_manifests_are_read_when_the_cluster_is_made(tmp_path: Path) -> None:
    board = Board()
    cluster = board.cluster(manifests(tmp_path))
    assert cluster.synced.is_set() and cluster.unsynced() == {}
    assert b"\3web\3dev" in cluster.index.entries
    assert {fact for facts in board.facts for fact in facts} >= {b"svc/\3web\3dev", b"ns/\3dev"}
    assert cluster.index.serial == 1000
    cluster.start()
    cluster.start()
    cluster.close()


def test_manifests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    settings = manifests(tmp_path)
    (tmp_path / "b.yaml").write_text(MANIFEST.replace("10.96.0.1", "nowhere").replace("web", "bad"))
    with pytest.raises(ObjectError, match=r"b\.yaml:1"):
        Board().cluster(settings)


async def test_an_api_server() -> None:
    async with fakeapi.FakeApi() as api:
        api.put("namespaces", fakeapi.namespace("dev"))
        api.put("services", fakeapi.service("web", "dev", cluster_ip="10.96.0.1"))
        cluster = Board().cluster(Settings(endpoint=api.url, pods=True))
        assert set(cluster.unsynced()) == {"namespaces", "services", "endpointslices", "pods"}
        assert all(cluster.unsynced().values())
        cluster.start()
        await asyncio.wait_for(cluster.synced.wait(), 10)
        assert cluster.unsynced() == {} and b"\3web\3dev" in cluster.index.entries
        cluster.close()


def test_without_a_cluster_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ApiError, match="unable to load in-cluster configuration"):
        Board().cluster(Settings())


def test_a_kubeconfig_is_not_read_before_the_start(tmp_path: Path) -> None:
    cluster = Board().cluster(Settings(kubeconfig=str(tmp_path / "none"), context="x"))
    assert not cluster.synced.is_set()
    cluster.close()


async def test_events_that_change_nothing_drop_nothing(tmp_path: Path) -> None:
    board = Board()
    cluster = board.cluster(manifests(tmp_path))
    cluster.apply(Apply("services", service("new.dev", "10.96.0.2")))
    before = len(board.facts)
    cluster.apply(Apply("services", service("new.dev", "10.96.0.2")))
    assert len(board.facts) == before


async def test_the_way_from_a_change_to_the_answers_is_measured(tmp_path: Path) -> None:
    board = Board()
    cluster = board.cluster(manifests(tmp_path), now=1763718265.0)
    changed = "2025-11-21T09:44:24.9375Z"
    for found in (
        slice_of("web-a.dev", "10.1.0.1", of="web", changed=changed),
        slice_of("web-b.dev", "10.1.0.2", of="web", changed="yesterday"),
        slice_of("web-c.dev", "10.1.0.3", of="web"),
        slice_of("none-a.dev", "10.1.0.4", of="none", changed=changed),
    ):
        cluster.apply(Apply("endpointslices", found))
    counts, total = board.programmed("cluster_ip")
    assert (sum(counts), total) == (1, 0.0625)
    cluster.apply(Apply("services", service("none.dev")))
    cluster.apply(Apply("endpointslices", slice_of("none-b.dev", "10.1.0.5", of="none", changed=changed)))
    assert sum(board.programmed("headless_with_selector")[0]) == 1


async def test_many_changes_at_the_end_of_a_list_are_told_step_by_step(tmp_path: Path) -> None:
    board = Board()
    cluster = board.cluster(manifests(tmp_path))
    for third in (1, 2):
        cluster.apply(Init("services"))
        for number in range(250):
            cluster.apply(InitApply("services", service(f"s{number}.dev", f"10.{third}.0.{number}")))
        before, told = cluster.changes, len(board.facts)
        if third == 1:
            cluster.apply(InitDone("services"))
    steps = sum(1 for _ in cluster.finish(InitDone("services")))
    assert steps > cluster.changes - before >= 1 and len(board.facts) > told
    assert len(cluster.index.by_cluster_ip(pack_address("10.2.0.7"))) == 1
    assert not cluster.index.by_cluster_ip(pack_address("10.1.0.7"))


async def test_the_first_list_tells_nothing_about_the_way(tmp_path: Path) -> None:
    board = Board()
    cluster = board.cluster(manifests(tmp_path))
    listed = slice_of("web-a.dev", "10.1.0.1", of="web", changed="2020-01-01T00:00:00Z")
    for event in (Init("endpointslices"), InitApply("endpointslices", listed), InitDone("endpointslices")):
        cluster.apply(event)
    assert sum(board.programmed("cluster_ip")[0]) == 0


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_contents_differ_where_what_is_kept_differs() -> None:
    plain = Settings().contents
    assert set(plain) == {"namespaces", "services", "endpointslices"}
    assert Settings(qps=5.0, endpoint="http://x").contents == plain
    for settings, kind in (
        (Settings(namespace_labels="a=b"), "namespaces"),
        (Settings(labels="a=b"), "services"),
        (Settings(labels="a=b"), "endpointslices"),
        (Settings(pod_names=True), "endpointslices"),
    ):
        assert settings.contents[kind] != plain[kind]
    with_pods = Settings(pods=True).contents
    assert {kind: with_pods[kind] for kind in plain} == plain
    assert Settings(pods=True, pod_labels=True).contents["pods"] != with_pods["pods"]
    assert "endpointslices" not in Settings(endpoints=False).contents


def test_identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, config = tmp_path / "ca.crt", tmp_path / "config"
    ca.write_text("one")
    config.write_text("one")

    def identities() -> list[str]:
        return [
            Settings(endpoint="https://a:6443").identity(),
            Settings(endpoint="https://b:6443").identity(),
            Settings(endpoint="https://a:6443", tls=("cert", "key", str(ca))).identity(),
            Settings(kubeconfig=str(config)).identity(),
            Settings(kubeconfig=str(config), context="x").identity(),
            Settings().identity(),
        ]

    # In a pod.
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", str(tmp_path))
    in_cluster = credentials.in_cluster
    monkeypatch.setattr(credentials, "in_cluster", lambda: in_cluster(directory=str(tmp_path)))
    (tmp_path / "token").write_text("secret")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    before = identities()
    assert len(set(before)) == len(before) and before == identities()
    assert before[-1].startswith("10.96.0.1:443 ") and "secret" not in "".join(before)
    (tmp_path / "token").write_text("rotated")
    assert identities() == before
    ca.write_text("two")
    config.write_text("two")
    changed = [one != other for one, other in zip(before, identities(), strict=True)]
    assert changed == [False, False, True, True, True, True]
    ca.unlink()
    with pytest.raises(OSError, match=r"ca\.crt"):
        Settings().identity()


class Warm:
    """A cluster on a fake API server, and its snapshot."""

    def __init__(self, board: Board, api: fakeapi.FakeApi, path: Path) -> None:
        self.settings = Settings(endpoint=f"http://127.0.0.1:{api.port}")
        self.cluster = board.cluster(self.settings)
        self.snapshot = Snapshot(
            str(path), 3600.0, self.settings.contents, self.settings.identity, board.metrics, Logger("test")
        )
        self.cluster.begin_with(self.snapshot)

    def __enter__(self) -> Warm:
        self.cluster.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.snapshot.close()
        self.cluster.close()


async def test_a_warm_start(tmp_path: Path) -> None:
    path = tmp_path / "cluster.snapshot"
    async with fakeapi.FakeApi() as api:
        api.put("services", fakeapi.service("web", cluster_ip="10.96.0.1"))
        api.put("services", fakeapi.service("gone", cluster_ip="10.96.0.2"))
        with captured_log() as log, Warm(Board(), api, path) as first:
            await asyncio.wait_for(first.cluster.synced.wait(), 10)
            assert first.cluster.in_step() and first.cluster.changes
            assert await first.snapshot.write(first.cluster)
            await api.refuse()
            await until(lambda: not first.cluster.in_step())
            assert not await first.snapshot.write(first.cluster)
        assert log.matching("no snapshot yet")
        board = Board()
        with captured_log() as log, Warm(board, api, path) as second:
            cluster = second.cluster
            assert cluster.restoring is not None
            await asyncio.wait([cluster.restoring])
            assert b"\4gone\7default" in cluster.index.entries and not cluster.synced.is_set()
            assert not cluster.in_step() and cluster.changes == 0 and board.facts == []
            await until(lambda: "refused" in cluster.unsynced()["services"])
            assert cluster.unsynced()["services"].startswith("from a snapshot of 20")
            cluster.begin_with(second.snapshot)  # too late, and no harm
            api.delete("services", "gone")
            await api.accept()
            await asyncio.wait_for(cluster.synced.wait(), 10)
            dropped = {fact for facts in board.facts for fact in facts}
            # What is as it was is not dropped.
            assert dropped == {
                *(b"svc/\4gone\7default", b"ip/\x0a\x60\0\2"),
                *(b"known/namespaces", b"known/services", b"known/endpointslices"),
            }
            assert cluster.index.remembered == () and b"\3web\7default" in cluster.index.entries
        assert len(log.matching("the API server has been heard")) == 1


async def test_a_cluster_is_not_in_step_while_a_list_takes_force(tmp_path: Path) -> None:
    """Between its steps there is both what was and what is."""
    async with fakeapi.FakeApi() as api:
        api.put("services", fakeapi.service("web", cluster_ip="10.96.0.1"))
        with captured_log(), Warm(Board(), api, tmp_path / "x") as warm:
            cluster = warm.cluster
            await asyncio.wait_for(cluster.synced.wait(), 10)
            assert cluster.in_step()
            cluster.apply(Init("services"))
            steps = cluster.finish(InitDone("services"))
            next(steps)
            assert not cluster.in_step() and not await warm.snapshot.write(cluster)
            assert len(list(steps)) == 1 and cluster.in_step()


async def test_what_a_snapshot_said_before_it_turned_out_to_be_none_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "cluster.snapshot"
    async with fakeapi.FakeApi() as api:
        await api.refuse()
        board = Board()
        with captured_log() as log, Warm(board, api, path) as warm:
            pen = Pen(str(path))
            pen.begin(Header(warm.settings.identity(), time.time(), warm.settings.contents))
            pen.write(frame("services", [service("web.dev", "10.96.0.1")]))
            pen.write(frame("services", [service("web.dev", "10.96.0.1") for _ in range(2)])[:-1] + b"\xff")
            pen.commit()
            assert warm.cluster.restoring is not None
            await asyncio.wait([warm.cluster.restoring])
            assert not warm.cluster.index.entries
            assert {fact for facts in board.facts for fact in facts} >= {b"known/services", b"known/namespaces"}
        assert log.matching("made by somebody else")


async def test_a_bug_in_reading_old_news_keeps_no_new_ones_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with fakeapi.FakeApi() as api:
        with captured_log() as log, Warm(Board(), api, tmp_path / "x") as warm:
            monkeypatch.setattr(Snapshot, "restore", lambda self, index: 1 // 0)
            await asyncio.wait_for(warm.cluster.synced.wait(), 10)
        assert log.matching("a snapshot could not be restored: ZeroDivisionError")


async def test_who_is_closed_while_restoring_follows_nothing(tmp_path: Path) -> None:
    async with fakeapi.FakeApi() as api:
        with Warm(Board(), api, tmp_path / "x") as warm:
            restoring = warm.cluster.restoring
        assert restoring is not None
        await asyncio.wait([restoring])
        await asyncio.sleep(0.05)
        assert api.count() == 0
