"""The benchmark's own arithmetic: the same world for everybody, and figures that are not of wrong answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import dns.flags
import dns.message
import pytest

from bench import __main__ as command_line
from bench import load, measure, peers, picture, report, verdict, world
from bench.api import Director, fill
from bench.control import api
from bench.load import Generator, compile_c
from bench.peers import PEERS, Place, corefile
from bench.phases import Plan
from bench.report import Run
from bench.run import Progress, possible
from bench.sample import Best, Cost, Load, Memory, Sample
from tests import fakeapi
from tests.support import hang_up, parse

RECORDS = {(name, kind) for name, kind, _ in world.cluster_records(500)}


@pytest.mark.parametrize("workload", world.WORKLOADS.values(), ids=lambda workload: workload.name)
def test_questions_are_about_names_that_exist_unless_they_are_not(workload: world.Workload, tmp_path: Path) -> None:
    world.write_questions(workload, 500, tmp_path / "questions")
    lines = (tmp_path / "questions").read_text().splitlines()
    assert len(lines) == 500 or not workload.once
    assert len(set(lines)) == len(lines) or not workload.once
    asked = [tuple(line.split()) for line in lines]
    if workload.rcodes == ("NOERROR",):
        assert all(question in RECORDS or question[0].endswith(world.OUTSIDE) for question in asked)
    if workload.changes and not workload.relist:
        changing = {service.fqdn for service in world.changing()}
        assert sum(name in changing for name, _ in asked) == len(asked) / 2
        assert all(name in changing or (name, kind) in RECORDS for name, kind in asked)
    if workload.rcodes == ("NXDOMAIN",):
        assert not any(question in RECORDS for question in asked)


def test_zones_hold_all_records(tmp_path: Path) -> None:
    import dns.zone

    world.write_zone(world.ZONE, world.cluster_records(20), tmp_path / "zone")
    zone = dns.zone.from_file(str(tmp_path / "zone"), world.ZONE)
    service = world.services()[0]
    assert service.headless
    found = zone.get_rrset(service.fqdn.removesuffix(f".{world.ZONE}"), "A")
    assert found is not None and {item.address for item in found} == set(service.addresses)


def test_every_peer_has_a_configuration(tmp_path: Path) -> None:
    for name, peer in PEERS.items():
        (tmp_path / name).mkdir()
        place = Place(tmp_path / name, 5300, 5301, 5302, 5303, 10)
        command = peer.command(place)
        assert "5300" in " ".join(command) + "".join(path.read_text() for path in place.directory.iterdir())
    assert len(parse(corefile(place).read_text()).blocks) == 1


def test_kdns_is_run_with_and_without_its_compiled_twins(tmp_path: Path) -> None:
    assert PEERS["kdns"].environment == PEERS["kdns-multisocket"].environment == {"KDNS_COMPILED": "must"}
    assert PEERS["kdns-pure"].environment == {"KDNS_COMPILED": "never"}
    assert not PEERS["kdns-pure"].missing
    assert PEERS["kdns-multisocket"].optional and not PEERS["kdns"].optional
    place = Place(tmp_path, 5300, 5301, 5302, 5303, 10)
    PEERS["kdns-multisocket"].command(place)
    block = parse((tmp_path / "Corefile").read_text()).blocks[0]
    assert next((one.name, list(one.args)) for one in block.directives) == ("multisocket", ["1"])


def test_compiled_twins_are_those_of_setup_py(tmp_path: Path) -> None:
    setup = tmp_path / "setup.py"
    setup.write_text("import os\nTWINS: dict[str, list[str]] = {'kdns._a': ['kdns/_a.pyx'], 'kdns._b': []}\n")
    assert peers.twins(setup) == ["kdns._a", "kdns._b"]
    setup.write_text("TWINS = {}\n")
    assert peers.twins(setup) == []
    setup.write_text("TWIN = {}\n")
    with pytest.raises(ValueError, match="no table TWINS"):
        peers.twins(setup)
    assert isinstance(peers.twins(), list)
    assert "names no compiled twins" in peers.not_compiled([])
    assert "not built (No module named 'kdns._none')" in peers.not_compiled(["kdns.name", "kdns._none"])
    assert peers.not_compiled(["kdns.name"]) == ""


def test_who_can_do_what() -> None:
    able = {name: {peer for peer in PEERS if possible(workload, PEERS[peer])} for name, workload in
            world.WORKLOADS.items()}  # fmt: skip
    assert able["changes"] == able["relist"] == {"kdns", "kdns-pure", "kdns-multisocket", "coredns"}
    assert not able["forward-miss"] & {"nsd", "knot", "echo"} and "unbound" in able["forward-miss"]
    assert "echo" not in able["tcp"] and able["hot"] == set(PEERS)
    plan = Plan(frozenset({"cpu", "latency", "qps"}), 1.0, 1000, 500.0)
    assert plan.wants(world.WORKLOADS["tcp"]) == {"cpu"}
    assert plan.wants(world.WORKLOADS["relist"]) == {"latency"}
    assert plan.later(world.WORKLOADS["cold"]) == 501 < plan.later(world.WORKLOADS["nxdomain"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["warm"], "unknown workload 'warm'; there are hot cold"),
        (["--peers", "echo,powerdns"], "unknown peer 'powerdns'"),
        (["--peers", ","], "there must be a peer"),
        (["--figures", "speed"], "unknown figure 'speed'; there are cpu latency qps"),
        (["--rounds", "0"], "--rounds must be from 1 to 100"),
        (["--seconds", "nan"], "--seconds must be from 0.1 to 600"),
        (["--rate", "2e6"], "--rate must be from 10 to 1,000,000"),
        (["--queries", "many"], "invalid int value"),
        (["changes", "--peers", "echo"], "none of these figures of 'changes' can be measured of any of echo"),
        (["tcp", "--figures", "qps", "--peers", "kdns-pure"], "none of these figures of 'tcp'"),
        (["hot", "--figures", "latency", "--peers", "echo", "--out", __file__], "--out: "),
    ],
)
def test_a_wrong_command_line_is_told(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit):
        command_line.main(["hot", "--peers", "nsd"])
    assert "nsd cannot be measured: 'nsd' is not on PATH" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command_line.main(["--help"])
    assert ended.value.code == 0
    assert "not found: 'knotd' is not on PATH" in capsys.readouterr().out


LOAD = Load(5000, 5000, 5000, 5000, 0, 0, 0, 50.0, 100.0, 200.0, 300.0, 30.0, {"NOERROR": 1.0})


def sample(cost: float, **changes: object) -> Sample:
    fields = {"answered": 1000, "seconds": cost / 1000, "qps": 50_000.0, "lost": 0, "latency": 0.001,
              "rcodes": {"NOERROR": 1.0}}  # fmt: skip
    memory = {"idle": Memory(2**20, 2**21), "after": Memory(2**20, 2**21), "peak_pss": 2**21, "peak_rss": 2**22}
    more = {name: changes.pop(name) for name in list(changes) if name not in fields}
    return Sample(Cost(**{**fields, **changes}), **{**memory, **more})  # type: ignore[arg-type]


def run_of(samples: verdict.Samples, *names: str) -> Run:
    return Run(samples, list(names), 3, 5000.0)


def test_tables_have_medians_and_ratios(tmp_path: Path) -> None:
    samples = {
        "hot": {"echo": [sample(2.0)], "kdns": [sample(c) for c in (3.0, 9.0, 4.0)], "coredns": [sample(16.0)]},
        "tcp": {"kdns": [sample(5.0)]},
    }
    run = run_of(samples, "echo", "kdns", "coredns")
    text = report.markdown(run)
    assert "| hot cluster names | 2.0 | 4.0 (2.00) | 16.0 (8.00) |" in text
    assert "| hot cluster names | 0.12 | 0.25 | 1.00 |" in text
    assert "| TCP, 4 connections, pipelined | – | 5.0 | – |" in text
    assert "| hot cluster names | 1.0 / 1.0 / 2.0 / 4.0 | 1.0 / 1.0 / 2.0 / 4.0 |" in text
    assert not {"Not as it should be", "Latency", "ratio to NSD", "without a loss"} & set(text.split("\n## "))
    assert "p99" not in text and "without a loss" not in text and "ratio to NSD" not in text
    report.write_json(run, tmp_path / "json")
    told = json.loads((tmp_path / "json").read_text())["samples"]["hot"]["kdns"]
    assert [one["cost_us"] for one in told] == pytest.approx([3.0, 9.0, 4.0])
    assert told[0]["idle"] == {"pss": 2**20, "rss": 2**21}


def test_latencies_and_rates_have_tables(tmp_path: Path) -> None:
    slow = replace(LOAD, p999=500.0, late=70.0)
    samples = {
        "hot": {
            "kdns": [Sample(steady=LOAD, best=Best(100_000)), Sample(steady=slow, best=Best(120_000, True))],
            "nsd": [Sample(steady=LOAD, best=Best(130_000))],
        },
        "relist": {"kdns-multisocket": [Sample(quiet=LOAD, steady=slow, changes=999.0, relisted=2.0)]},
    }
    run = replace(run_of(samples, "kdns", "kdns-multisocket", "nsd"), absent={"knot": "no"}, versions={"nsd": "NSD 4"})
    text = report.markdown(run)
    assert "| | kdns | nsd |" in text
    assert "| hot cluster names | ≥ 110,000 | 130,000 |" in text
    assert "| hot cluster names | 50 / 100 / 350 | 50 / 100 / 200 |" in text
    assert "| hot names, 1,000 changes/s and a relist | 200 → 500 (2.50) |" in text
    assert "late by 50 µs" not in text and "late by 30 µs" in text and "at most 70" in text
    assert "- knot: no" in text and "- nsd: NSD 4" in text
    assert "| relist: p99.9 of kdns-multisocket ≤ 2 × quiet p99.9 | 2.50 | **not met** |" in text
    report.write_json(run, tmp_path / "json")
    assert json.loads((tmp_path / "json").read_text())["samples"]["hot"]["nsd"][0]["cost_us"] is None


def test_the_verdict_is_about_what_was_measured_and_nothing_else() -> None:
    samples = {
        "hot": {
            "echo": [sample(4.0)], "kdns": [sample(5.0, after=Memory(46 * 2**20, 0))], "kdns-pure": [sample(9.0)],
            "coredns": [sample(15.0)],
        },
        "cold": {"kdns": [sample(9.0)]},
        "tcp": {"kdns": [sample(6.0)], "coredns": [sample(10.0)]},
    }  # fmt: skip
    found = {(target.workload, target.peer, target.base): value for target, value in verdict.judged(samples)}
    assert found == pytest.approx({
        ("hot", "kdns", "echo"): 1.25, ("hot", "kdns", "coredns"): 1 / 3, ("hot", "kdns-pure", "echo"): 2.25,
        ("hot", "kdns", ""): 46.0, ("tcp", "kdns", "coredns"): 0.6,
    })  # fmt: skip
    text = verdict.markdown(samples)
    assert "| hot: CPU per query of kdns ≤ 1.25 × echo | 1.25 | met |" in text
    assert "| hot: CPU per query of kdns ≤ 0.33 × coredns | 0.33 | **not met** |" in text
    assert "| hot: Pss after the questions of kdns ≤ 45 MiB | 46.00 | **not met** |" in text
    table, _, left = text.partition("\n\n")
    assert table.count("\n") == 1 + len(found)
    assert left.startswith("Not judged, for want of a figure: hot: CPU per query of kdns ≤ 1 × nsd; cold: ")
    assert verdict.markdown({"hot": {"nsd": [sample(1.0)]}}) == ""
    # What is met with wrong answers, or beside them, is not worth much.
    samples["tcp"]["coredns"] = [sample(10.0, rcodes={"SERVFAIL": 1.0})]
    text = report.markdown(run_of(samples, "echo", "kdns", "kdns-pure", "coredns"))
    assert "| tcp: CPU per query of kdns ≤ 0.6 × coredns | 0.60 | met, **but see below** |" in text
    assert "| hot: CPU per query of kdns ≤ 1.25 × echo | 1.25 | met |" in text
    assert "- coredns, tcp: 100.0% of the answers are not NOERROR" in text
    for target in verdict.TARGETS:
        assert target.workload in world.WORKLOADS and {target.peer, target.base or "echo"} <= set(PEERS)


def test_the_picture_is_well_formed_and_has_a_bar_for_every_figure() -> None:
    costs = {"hot": {"echo": 2.0, "kdns": 3.0, "a<b": 4.0}, "tcp": {"kdns": 8.0}}
    root = ElementTree.fromstring(picture.svg(costs, "here & now"))
    name = "{http://www.w3.org/2000/svg}"
    bars = [one for one in root.iter(f"{name}rect") if one.get("class") != "page"]
    widths = [float(one.attrib["width"]) for one in bars]
    assert len(bars) == 4 and widths == sorted(widths)
    assert widths[1] / widths[0] == pytest.approx(1.5, abs=0.01)
    texts = ["".join(one.itertext()) for one in root.iter(f"{name}text")]
    assert {"here & now", "a<b", "hot cluster names", "8.0"} <= set(texts)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert all(float(one.attrib["x"]) + float(one.attrib["width"]) < width for one in bars)
    assert all(float(one.attrib["y"]) + float(one.attrib["height"]) < height for one in bars)
    assert ElementTree.fromstring(picture.svg({}, "")).tag == f"{name}svg"


def test_wrong_and_missing_answers_are_told() -> None:
    samples = {
        "hot": {
            "kdns": [sample(3.0, lost=10)],
            "nsd": [sample(3.0, rcodes={"REFUSED": 0.5, "NOERROR": 0.5})],
            "echo": [sample(3.0, rcodes={})],
            "knot": [Sample(steady=replace(LOAD, lost=100, wrong=3, rate=4000.0))],
            "unbound": [Sample(steady=replace(LOAD, rcodes={"SERVFAIL": 1.0}))],
        },
        "changes": {"coredns": [Sample(changes=900.0)], "kdns": [Sample(changes=999.0)]},
    }
    assert report.complaints(samples) == [
        "kdns, hot: 1.0% of the questions unanswered",
        "nsd, hot: 50.0% of the answers are not NOERROR",
        "knot, hot: 2.0% of the questions at the fixed rate unanswered within 1 s",
        "knot, hot: the generator sent only 80.0% of the fixed rate",
        "knot, hot: 3 packets that answer no question that was open",
        "unbound, hot: 100.0% of the answers are not NOERROR",
        "coredns, changes: only 900 changes a second",
    ]


def test_the_rest_is_reckoned_from_what_the_same_has_taken(capsys: pytest.CaptureFixture[str]) -> None:
    hot, cold = world.WORKLOADS["hot"], world.WORKLOADS["cold"]
    progress = Progress([(hot, 1, PEERS["echo"]), (hot, 2, PEERS["echo"]), (cold, 1, PEERS["nsd"])])
    assert progress.rest() is None
    with progress.step(hot, 1, PEERS["echo"]):
        assert capsys.readouterr().err == "[1/3] hot, round 1: echo · 0:00 gone\n"
    progress._took = {("hot", "echo"): [100.0]}
    assert progress.rest() == pytest.approx(200.0)
    with progress.step(hot, 2, PEERS["echo"]):
        assert "[2/3] hot, round 2: echo · 0:00 gone, about 3:20 left" in capsys.readouterr().err


def test_the_search_finds_the_rate_that_can_be_kept_up_with() -> None:
    tried: list[float] = []

    def server(able: float, sends: float = 1e9) -> Callable[[float], Load]:
        def probe(rate: float) -> Load:
            tried.append(rate)
            sent = min(rate, sends)
            lost = max(0, int(sent - able))
            return replace(LOAD, offered=rate, rate=sent, lost=lost)

        return probe

    for able in (30_000, 90_000):
        found = load.search(server(able), 50_000)
        assert able / 1.1 <= found.rate <= able and not found.bounded
    found = load.search(server(1e9, sends=120_000), 50_000)
    assert 105_000 < found.rate < 125_000 and found.bounded
    hiccups = iter([False, True])

    def late_now_and_then(rate: float) -> Load:
        sent = rate if next(hiccups, True) else rate / 2
        return replace(LOAD, offered=rate, rate=sent, lost=0 if rate < 60_000 else 9)

    found = load.search(late_now_and_then, 50_000)
    assert 50_000 <= found.rate < 60_000 and not found.bounded, "one more try when the generator was held up"
    tried.clear()
    assert load.search(server(-1), 50_000) == Best(0.0)
    assert len(tried) == 2 * load.PROBES

    def hoards(rate: float) -> Load:
        return replace(LOAD, offered=rate, rate=rate, owed=int(rate * 0.5) if rate > 70_000 else 0)

    assert 60_000 < load.search(hoards, 50_000).rate <= 70_000


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("tools")
    for name in ("load", "echo"):
        compile_c(name, directory)
    return directory


@contextlib.contextmanager
def responder(answer: Callable[[int, bytes], bytes]) -> Iterator[int]:
    """A server that answers its n-th packet so; the port.  b"" is silence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        end = threading.Event()

        def serve() -> None:
            number = 0
            while not end.is_set():
                packet, peer = sock.recvfrom(4096)
                if packet and (reply := answer(number, packet)):
                    sock.sendto(reply, peer)
                number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            end.set()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", sock.getsockname())
            thread.join()


def reply(packet: bytes, rcode: int = 0) -> bytes:
    return packet[:2] + bytes((packet[2] | 0x80, rcode)) + packet[4:]


def generator(tools: Path, *lines: str) -> Generator:
    with tempfile.NamedTemporaryFile("w", dir=tools, delete=False) as file:
        file.write("".join(f"{line}\n" for line in lines))
    return Generator(tools / "load", Path(file.name), measure.cores()[1])


def test_load_asks_the_questions_and_counts_the_answers(tools: Path) -> None:
    seen: list[dns.message.Message] = []

    def answer(number: int, packet: bytes) -> bytes:
        seen.append(dns.message.from_wire(packet))
        return reply(packet, 3 if number % 4 == 3 else 0)

    asked = generator(tools, "One.example. A", "two.example AAAA", ". NS", "_x._tcp.example. SRV")
    asked.position = 1
    with responder(answer) as port:
        told = asked.run(port, 1000, 0.2)
    assert (told.sent, told.answered, told.lost, told.wrong) == (200, 200, 0, 0)
    assert told.rcodes == {"NOERROR": 0.75, "NXDOMAIN": 0.25}
    assert asked.position == 201
    questions = [seen[number].question[0].to_text() for number in range(4)]
    assert questions == ["two.example. IN AAAA", ". IN NS", "_x._tcp.example. IN SRV", "One.example. IN A"]
    assert all(query.flags == dns.flags.RD for query in seen)
    assert 0.5 < told.rate / 1000 < 1.05
    assert 0 < told.p50 <= told.p99 <= told.p999 <= told.most < 1e6


def test_load_uses_several_source_ports_and_fresh_ids(tools: Path) -> None:
    asked, seen = generator(tools, "one.example. A"), set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        told = asked.run(sock.getsockname()[1], 1000, 0.1, wait=0.0)
        sock.settimeout(5)
        for _ in range(100):
            packet, peer = sock.recvfrom(4096)
            seen.add((peer, packet[:2]))
    assert told.lost == told.sent == told.owed == 100
    assert len(seen) == 100 and len({peer for peer, _ in seen}) == load.SOURCES


def test_load_notices_what_is_lost_and_what_is_no_answer(tools: Path) -> None:
    def answer(number: int, packet: bytes) -> bytes:
        match number % 10:
            case 0:
                return b""
            case 1:
                return reply(packet).replace(b"one", b"two")
            case 2:
                return packet  # no reply: QR is not set
            case 3:
                return b"\0"
        return reply(packet)

    with responder(answer) as port:
        told = generator(tools, "one.example. A").run(port, 2000, 0.1, wait=0.5)
    assert (told.sent, told.answered, told.lost, told.wrong) == (200, 120, 80, 60)
    assert told.p999 == told.p99 == pytest.approx(5e5, rel=0.01), "what is lost is as slow as the wait"
    assert told.p50 < 5e5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    told = generator(tools, "one.example. A").run(port, 1000, 0.05, wait=0.0)
    assert (told.sent, told.answered, told.lost, told.rcodes) == (50, 0, 50, {})


def test_load_counts_latency_from_when_a_question_was_due(tools: Path) -> None:
    """A server that stops for 0.2 s at 1,000 questions a second has some 200 late answers, not one."""

    def answer(number: int, packet: bytes) -> bytes:
        if number == 100:
            time.sleep(0.2)
        return reply(packet)

    with responder(answer) as port:
        told = generator(tools, "one.example. A").run(port, 1000, 0.5)
    assert (told.answered, told.lost) == (500, 0)
    # Late are those due in 0.2 of 0.5 s: evenly by 0.2 s and less.
    assert told.p99 > 180_000 and told.most > 195_000


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["192.0.2.1", "53", "-", "0", "1", "1", "1", "1"], "loopback only"),
        (["::1", "53", "-", "0", "1", "1", "1", "1"], "loopback only"),
        (["127.0.0.1", "53", "-", "0", "1e9", "1", "1", "1"], "RATE must be a number from 1 to 5e+06, not '1e9'"),
        (["127.0.0.1", "53", "-", "0", "1", "601", "1", "1"], "SECONDS must be"),
        (["127.0.0.1", "53", "-", "0", "1", "1", "65", "1"], "SOCKETS must be"),
        (["127.0.0.1", "53", "/nonexistent", "0", "1", "1", "1", "1"], "No such file"),
        (["127.0.0.1"], "usage"),
    ],
)
def test_load_refuses_what_it_must_not_do(tools: Path, words: list[str], error: str) -> None:
    done = subprocess.run([tools / "load", *words], capture_output=True, text=True, timeout=10)
    assert done.returncode == 2 and error in done.stderr


@pytest.mark.parametrize(
    "line",
    ["one.example.", "one..example. A", f"{'a' * 64}. A", f"{'abc.' * 63}bc. A", "one. WHAT", "..", ". .", ".a A"],
)
def test_load_refuses_what_is_no_question(tools: Path, line: str) -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    with pytest.raises(measure.BenchError, match=":3: not a question"):
        generator(tools, f"{longest} A", f"{longest}. A", line).run(9, 1000, 0.01)


def test_a_program_that_does_not_compile_is_told(tmp_path: Path) -> None:
    with pytest.raises(measure.BenchError, match=r"nothing\.c cannot be compiled"):
        compile_c("nothing", tmp_path)


async def test_changes_come_and_go_and_a_relist_is_forced() -> None:
    async with fakeapi.FakeApi() as server:
        fill(server, 20, 30)
        assert len(server._stores["services"].items) == 20
        assert len(server._stores["endpointslices"].items) == 30
        director, before = Director(server), server.resource_version
        director.changes.apply(500)
        assert server.resource_version == before + 500 and director.changes.applied == 500
        kinds = {(change.item["kind"], change.type) for store in server._stores.values() for change in store.history
                 if change.version > before}  # fmt: skip
        assert kinds == {(kind, type) for kind in ("Service", "EndpointSlice")
                         for type in ("ADDED", "MODIFIED", "DELETED")}  # fmt: skip
        await director.obey("changes 0")
        assert len(server._stores["services"].items) == 20
        assert len(server._stores["endpointslices"].items) == 30

        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for version, wanted in ((server.resource_version, b"0\r\n\r\n"), (server.resource_version, b'"code":410')):
                path = f"/api/v1/services?watch=1&resourceVersion={version}"
                writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                if server.watching("services") == 0 and wanted.startswith(b"0"):
                    while not server.watching("services"):
                        await asyncio.sleep(0.01)
                    assert await director.obey("relist 3") == {}
                assert wanted in await reader.readuntil(wanted)
            await hang_up(writer)
        markers = [world.marker(1, number) for number in range(3)]
        assert all(server.get("services", one.name, one.namespace) for one in markers)
        last = sorted(server._stores["services"].items)[-3:]
        assert last == [(one.namespace, one.name) for one in markers], "they come last in every list"
        await director.obey("relist 1")
        assert server.get("services", markers[0].name, markers[0].namespace) is None
        assert await director.obey("state") == {"applied": 500, "relists": 2}
        with pytest.raises(ValueError, match="no order"):
            await director.obey("dance")


def test_the_api_is_a_process_that_changes_at_the_rate_wanted(tmp_path: Path) -> None:
    with api(measure.cores()[1], tmp_path / "log", 10, 0) as controlled:
        with controlled.changing(400):
            start, before = time.monotonic(), controlled.applied()
            while controlled.applied() - before < 100:
                assert time.monotonic() - start < 20
                time.sleep(0.02)
            assert time.monotonic() - start > 0.2, "400 a second are 100 in a quarter of a second, and no faster"
        assert controlled.applied() == controlled.applied()
    with (
        pytest.raises(measure.BenchError, match="the Kubernetes API ended"),
        api(measure.cores()[1], tmp_path / "log", 10, 0) as controlled,
    ):
        controlled.order("dance")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["hot", "--peers", "echo,kdns-pure", "--figures", "latency", "--rounds", "1", "--seconds", "0.2"]
    assert command_line.main([*words, "--rate", "1000", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "[2/2] hot, round 1: kdns-pure" in told.err
    assert (tmp_path / "out" / "bench.md").read_text() in told.out
    samples = json.loads((tmp_path / "out" / "bench.json").read_text())["samples"]["hot"]
    for peer in ("echo", "kdns-pure"):
        steady = samples[peer][0]["steady"]
        assert steady["answered"] == steady["sent"] == 200
    assert samples["kdns-pure"][0]["peak_rss"] > samples["kdns-pure"][0]["idle"]["pss"] > 2**20
    assert not (tmp_path / "out" / "bench.svg").exists(), "there is nothing to draw without CPU figures"


def test_cpu_and_memory_of_a_process_and_its_children() -> None:
    work = "n = sum(range(3_000_000))"
    inner = f"import sys; {work}; print(1, flush=True); sys.stdin.read()"
    outer = (
        "import subprocess, sys;"
        "ended = len(sys.argv) < 2 or subprocess.run([sys.executable, '-c', sys.argv[1]]);"
        f"subprocess.run([sys.executable, '-c', {inner!r}])"
    )
    spent = []
    for more in ([], [f"for _ in range(10): {work}"]):
        with subprocess.Popen(
            [sys.executable, "-c", outer, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None and process.stdin is not None
            process.stdout.readline()
            assert len(measure.family(process.pid)) == 2
            spent.append(measure.cpu(process.pid))
            memory = measure.memory(process.pid)
            assert 2**20 < memory.pss <= memory.rss
            with measure.PeakPss(process.pid) as peak:
                pass
            assert 2**20 < peak.octets < measure.peak_rss(process.pid)
            process.stdin.close()
    assert spent[0] > 0.02
    assert spent[1] > 2.5 * spent[0], "a child that has ended has had its CPU nevertheless"


def test_cpu_of_threads_that_have_ended() -> None:
    code = """
import sys, threading, time

def work():
    while time.thread_time() < 0.3:
        pass

worker = threading.Thread(target=work)
worker.start()
worker.join()
print(1, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert 0.3 <= measure.cpu(process.pid) < 1.0
        process.stdin.close()


def test_echo(tools: Path, tmp_path: Path) -> None:
    port = measure.free_ports(1)
    with measure.running([str(tools / "echo"), str(port), "answer"], measure.cores()[0], tmp_path / "log") as process:
        measure.await_answer(process, port, "x.example. A", ("NOERROR",))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(("127.0.0.1", port))
            for kind, address in (("A", "192.0.2.1"), ("AAAA", "2001:db8::1"), ("TXT", "")):
                query = dns.message.make_query("x.example.", kind, use_edns=0)
                for odd in (b"", b"\0" * 12, b"\xff" * 40):
                    sock.send(odd)
                sock.send(query.to_wire())
                reply = dns.message.from_wire(sock.recv(4096))
                assert query.is_response(reply) and reply.edns == 0
                assert [item.to_text() for rrset in reply.answer for item in rrset] == ([address] if address else [])
    with pytest.raises(measure.BenchError, match="ended"):
        measure.await_answer(process, port, "x.example. A", ())


def test_a_log_line_is_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    before = time.monotonic()
    with measure.running(command, measure.cores()[0], log) as process:
        measure.await_line(process, log, "ready")
    assert time.monotonic() - before < 30
    with pytest.raises(measure.BenchError, match="did not say"):
        measure.await_line(process, log, "never")
