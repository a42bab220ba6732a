"""The benchmark of large clusters, with small ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench import measure, scale, world
from bench.api import Director, fill
from bench.peers import PEERS, Place
from bench.sample import Load
from bench.scale import ROWS, TARGETS, Figures, Plan, Row
from tests import fakeapi
from tests.support import parse

TINY = Row(200, 220, 2, True, 75, 3.0)
LOAD = Load(5000, 5000, 1000, 1000, 0, 0, 0, 100.0, 900.0, 35_000.0, 40_000.0, 10.0, {"NOERROR": 1.0})
GOOD = Figures(2.5, 44.0, 46.0, 1.1, [0.5, 0.9], [2.0, 3.0], LOAD, 1.0, 90.0, [0.001] * 99 + [0.009], 0)


def test_a_large_world_has_endpoints_and_pods_of_its_own() -> None:
    found = list(world.slices(20, 30, 4))
    addresses = [address for _, _, own in found for address in own]
    assert len(found) == 30 and len(set(addresses)) == len(addresses) == 120
    assert [name for name, _, _ in found] == [name for name, _, _ in world.slices(20, 30)]
    server = fakeapi.FakeApi()
    fill(server, 20, 30, 4, pods=True)
    pods = server._stores["pods"].items
    assert {pod["status"]["podIP"] for pod in pods.values()} == set(addresses)
    targets = [
        end["targetRef"] for item in server._stores["endpointslices"].items.values() for end in item["endpoints"]
    ]
    assert {(target["namespace"], target["name"]) for target in targets} == set(pods)


async def test_pods_have_a_marker_and_touches_are_told_by_the_address() -> None:
    async with fakeapi.FakeApi() as server:
        director = Director(server, pods=True)
        for number in (1, 2):
            await director.obey("relist 1")
            marker = server.get("pods", "relist", world.LAST_NAMESPACE)
            assert marker is not None and marker["status"]["podIP"] == world.marker_pod(number)[1]
        for number in (1, 2):
            assert (await director.obey(f"touch {number}"))["at"] > 0
            service = world.touched(number)
            touched = server.get("endpointslices", f"{service.name}-1", service.namespace)
            assert touched is not None and touched["endpoints"][0]["addresses"] == list(service.addresses)
    assert world.touched(1).addresses != world.touched(2).addresses


def test_the_table_judges_kdns_and_tells_of_others() -> None:
    text = scale.table(1, ROWS[1], {"kdns": GOOD, "coredns": Figures(pss=222.0)})
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert "not met" not in text
    assert lines["first list: CPU, s"] == "| first list: CPU, s | 3 | 2.50 met | – |"
    assert lines["Pss after it, MiB"] == "| Pss after it, MiB | 75 | 44.0 met | 222.0 |"
    assert lines["p99.9, ms"] == "| p99.9, ms |  | 35.00 | – |"


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        (replace(GOOD, sync_cpu=3.1), "| first list: CPU, s | 3 | 3.10 **not met** |"),
        (replace(GOOD, peak=1.26), "| relists: most memory ÷ that before | 1.25 | 1.26 **not met** |"),
        (replace(GOOD, load=replace(LOAD, lost=1)), "| lost | 0 | 1 **not met** |"),
        (replace(GOOD, load=replace(LOAD, rcodes={"NOERROR": 0.99, "NXDOMAIN": 0.01})),
         "| wrong (packets, rcodes) | 0 | 10 **not met** |"),
        (replace(GOOD, answers=[0.001] * 98 + [0.011] * 2),
         "| change → answer at 1,000 changes/s: p99, ms | 10 | 11.00 **not met** |"),
        (replace(GOOD, killed=1), "| ended for its memory | 0 | 1 **not met** |"),
    ],
)  # fmt: skip
def test_every_figure_can_fall_short(figures: Figures, line: str) -> None:
    assert line in scale.table(1, ROWS[1], {"kdns": figures})
    judged = [scale.judge(1, ROWS[1], target, figures) for target in TARGETS]
    assert judged.count(False) == 1


def test_a_relist_of_the_second_row_is_only_told() -> None:
    relist = next(target for target in TARGETS if target.name.startswith("relist: CPU"))
    assert scale.judge(2, ROWS[2], relist, GOOD) is None and scale.judge(1, ROWS[1], relist, GOOD) is True


def test_configurations(tmp_path: Path) -> None:
    place = Place(tmp_path, 5300, 0, 5302, 0, 0)
    for row, words in ((ROWS[1], ["pods", "insecure"]), (ROWS[2], ["pods", "verified"])):
        block = parse(scale.corefile(place, row).read_text()).blocks[0]
        kubernetes = next(one for one in block.directives if one.name == "kubernetes")
        assert any([inner.name, *inner.args] == words for inner in kubernetes.body or ())
    assert scale.command(PEERS["coredns"], tmp_path / "x") == ["coredns", "-conf", str(tmp_path / "x")]
    done = subprocess.run([*scale.command(PEERS["kdns-pure"], tmp_path / "x")[:-2], "-version"], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0 and "kdns" in done.stdout, "the command line is kdns's own"


def test_a_process_joins_its_group_before_it_begins(tmp_path: Path) -> None:
    assert scale.within(None, ["true"]) == ["true"]
    words = scale.within(tmp_path, ["sh", "-c", "echo $$"])
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "cgroup.procs").read_text() == told
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert scale.killed(tmp_path) == 2


def test_without_cgroups_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "CGROUPS", tmp_path / "none")
    with scale.cgroup(2**20) as group:
        assert group is None


def test_waiting_for_the_core_is_seen() -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    with measure.pinned({min(os.sched_getaffinity(0))}):
        rivals = [subprocess.Popen(busy) for _ in range(2)]
    try:
        with scale.Waiting(rivals[0].pid) as waiting:
            time.sleep(4 * waiting.PAUSE)
        assert waiting.worst > 1.0, "two that never rest have one core"
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()


@pytest.mark.parametrize(
    "words",
    [
        ["--peers", "unbound"],
        ["--peers", ","],
        ["--out", "/dev/null/x"],
        ["--relists", "0"],
        ["--row", "3"],
        ["--seconds", "0"],
    ],
)
def test_wrong_command_lines(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        scale.main(words)
    assert ended.value.code == 2


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_small_cluster_is_measured() -> None:
    plan = Plan(relists=1, seconds=1.0, rate=200.0, touches=50)
    found, failures = scale.run(0, TINY, [PEERS["kdns-pure"]], plan)
    assert failures == []
    figures = found["kdns-pure"]
    assert figures.load is not None and figures.load.lost == 0 == scale.wrong(figures.load)
    assert figures.sync_cpu and figures.pss and figures.peak and figures.event_us
    assert 1 <= len(figures.answers) <= 50 and len(figures.relist_cpu) == len(figures.relist_seconds) == 1
    assert all(0 < took < 10 for took in figures.answers)
