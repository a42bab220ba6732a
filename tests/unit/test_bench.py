"""The benchmark's own arithmetic: the same world for everybody, and figures that are not of wrong answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import dns.message
import pytest

from bench import measure, report, world
from bench.measure import Memory, Sample
from bench.peers import PEERS, Place, corefile
from tests.support import parse

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


def sample(cost: float, **changes: object) -> Sample:
    fields = {"answered": 1000, "seconds": cost / 1000, "qps": 50_000.0, "lost": 0, "latency": 0.001,
              "rcodes": {"NOERROR": 1.0}, "idle": Memory(2**20, 2**21), "after": Memory(2**20, 2**21)}  # fmt: skip
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


def test_tables_have_medians_and_ratios(tmp_path: Path) -> None:
    samples = {
        "hot": {"echo": [sample(2.0)], "kdns": [sample(c) for c in (3.0, 9.0, 4.0)], "coredns": [sample(16.0)]},
        "tcp": {"kdns": [sample(5.0)]},
    }
    text = report.markdown(samples, ["echo", "kdns", "coredns"])
    assert "| hot cluster names | 2.0 | 4.0 (2.00) | 16.0 (8.00) |" in text
    assert "| hot cluster names | 0.12 | 0.25 | 1.00 |" in text
    assert "| TCP, 4 connections, pipelined | – | 5.0 | – |" in text
    assert "Not as it should be" not in text
    report.write_json(samples, tmp_path / "json")
    told = json.loads((tmp_path / "json").read_text())["samples"]["hot"]["kdns"]
    assert [one["cost_us"] for one in told] == pytest.approx([3.0, 9.0, 4.0])
    assert told[0]["idle"] == {"pss": 2**20, "rss": 2**21}


def test_wrong_and_missing_answers_are_told() -> None:
    samples = {"hot": {
        "kdns": [sample(3.0, lost=10)],
        "nsd": [sample(3.0, rcodes={"REFUSED": 0.5, "NOERROR": 0.5})],
        "echo": [sample(3.0, rcodes={})],
    }}  # fmt: skip
    assert report.complaints(samples) == [
        "kdns, hot: 1.0% of the questions unanswered",
        "nsd, hot: 50.0% of the answers are not NOERROR",
    ]


def test_cpu_and_memory_of_a_process_and_its_children() -> None:
    work = "import subprocess, sys; n = sum(range(3_000_000)); print(1, flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        pids = measure.family(process.pid)
        assert len(pids) == 2
        assert measure.cpu(pids) > 0.02
        assert 2**20 < measure.memory(pids).pss <= measure.memory(pids).rss
        process.stdin.close()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_echo(tmp_path: Path) -> None:
    subprocess.run(["cc", "-o", tmp_path / "echo", measure.__file__.replace("measure.py", "echo.c")], check=True)
    port = measure.free_ports(1)
    with measure.running(
        [str(tmp_path / "echo"), str(port), "answer"], measure.cores()[0], tmp_path / "log"
    ) as process:
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
