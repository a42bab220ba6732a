"""The command: flags, exit codes, first lines, signals."""

import platform
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dns.message
import dns.query
import pytest

from kdns import cli
from tests.support import ROOT, Kdns, free_port

WHOAMI = ".:{port} {{\n    bind 127.0.0.1\n    whoami\n}}\n"


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    file = tmp_path / "Corefile"
    file.write_text(WHOAMI.format(port=free_port()))
    return file


def port_of(conf: Path) -> int:
    return int(conf.read_text().split(":")[1].split()[0])


def alive(port: int, seconds: float = 5) -> bool:
    reply = dns.query.udp(dns.message.make_query("example.org", "A"), "127.0.0.1", seconds, port)
    return reply.rcode() == 0


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdns", *arguments], capture_output=True, text=True, timeout=20, cwd=cwd
    )


def test_version_in_corednss_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("kdns-") and second.startswith("linux/") and ", python3." in second


@pytest.mark.parametrize("flag", ["-plugins", "--plugins", "-plugins=true"])
def test_plugins_are_listed(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert cli.main([flag]) == 0
    out = capsys.readouterr().out
    have, missing = out.split("does not have yet:")
    assert "dns.kubernetes\n" in have and "dns.forward\n" in have
    assert "dns.route53\n" in missing and "dns.kubernetes\n" not in missing


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-conf", "/does/not/exist"], "open /does/not/exist: No such file or directory\n"),
        (["-dns.port", "70000"], "is not a port"),
        (["leftover"], "extra command line arguments: ['leftover']"),
    ],
)
def test_wrong_command_lines_exit_with_1_or_2(arguments: list[str], problem: str) -> None:
    result = run(*arguments)
    assert result.returncode in (1, 2) and problem in result.stderr


def test_a_bad_corefile_exits_with_1_and_says_where(tmp_path: Path) -> None:
    file = tmp_path / "Corefile"
    file.write_text(". {\n    nonsense\n}\n")
    result = run("-conf", str(file))
    assert result.returncode == 1
    assert f"{file}:2 - Error during parsing: Unknown directive 'nonsense'" in result.stderr


def test_a_port_in_use_exits_with_1_and_names_it(conf: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port_of(conf)))
        result = run("-conf", str(conf))
    assert result.returncode == 1 and f"127.0.0.1 port {port_of(conf)}: Address already in use" in result.stderr


def test_first_lines_pidfile_and_sigterm(conf: Path, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with Kdns(conf, "-pidfile", str(pidfile)) as kdns:
        assert f".:{port_of(conf)} on 127.0.0.1\nkdns-" in kdns.read()
        assert alive(port_of(conf))
        while not pidfile.exists():
            time.sleep(0.01)
        assert pidfile.read_text() == f"{kdns.process.pid}\n"
        kdns.process.send_signal(signal.SIGHUP)
        kdns.process.send_signal(signal.SIGUSR2)
        assert alive(port_of(conf))
        assert kdns.stop() == 0
        assert "[INFO] SIGTERM: Shutting down servers then terminating" in kdns.output
        assert not pidfile.exists()


@pytest.mark.parametrize("flag", ["-h", "--h", "-help", "--help"])
def test_help_as_go_has_it(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([flag])
    assert ended.value.code == 0 and "--dns.port" in capsys.readouterr().out


def test_sigquit_takes_the_pidfile_away(conf: Path, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    with Kdns(conf, "-pidfile", str(pidfile)) as kdns:
        while not pidfile.exists():
            time.sleep(0.01)
        assert kdns.stop(signal.SIGQUIT) == 0
        assert "[INFO] SIGQUIT: Quitting process immediately" in kdns.read()
    assert not pidfile.exists()


def test_sigint_and_sigquit(conf: Path) -> None:
    with Kdns(conf) as kdns:
        assert kdns.stop(signal.SIGINT) == 0
    with Kdns(conf) as kdns:
        assert kdns.stop(signal.SIGQUIT) == 0


def test_a_second_sigint_ends_lameduck(tmp_path: Path) -> None:
    file = tmp_path / "Corefile"
    file.write_text(f".:{free_port()} {{\n whoami\n health 127.0.0.1:{free_port()} {{\n lameduck 1m\n }}\n}}\n")
    pidfile = tmp_path / "pid"
    with Kdns(file, "-pidfile", str(pidfile)) as kdns:
        while not pidfile.exists():
            time.sleep(0.01)
        kdns.process.send_signal(signal.SIGINT)
        kdns.wait_for("lameduck")
        assert kdns.stop(signal.SIGINT) == cli.INTERRUPTED
    assert not pidfile.exists()


def test_sigusr1_reloads_without_the_reload_directive(conf: Path) -> None:
    with Kdns(conf) as kdns:
        port, second = port_of(conf), free_port()
        conf.write_text(WHOAMI.format(port=port) + WHOAMI.format(port=second))
        kdns.process.send_signal(signal.SIGUSR1)
        kdns.wait_for("Reloading complete")
        assert alive(second) and alive(port)
        conf.write_text("garbage {")
        kdns.process.send_signal(signal.SIGUSR1)
        kdns.wait_for("[ERROR] plugin/reload: Corefile changed but reload failed: ")
        assert alive(second) and alive(port)


def test_the_default_corefile_is_whoami(tmp_path: Path) -> None:
    port = free_port()
    kdns = subprocess.Popen(
        [sys.executable, "-m", "kdns", "-dns.port", str(port), "-quiet"],
        cwd=tmp_path, stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            try:
                assert alive(port, 0.2)  # what comes before it listens is never answered
                break
            except (OSError, dns.exception.Timeout):
                time.sleep(0.02)
        else:
            raise AssertionError("no answer")
    finally:
        kdns.terminate()
        out, _ = kdns.communicate(timeout=10)
    assert b'"A IN example.org. udp ' in out and b"kdns-" not in out


def test_a_corefile_without_server_blocks_is_the_default_at_start_and_refused_later(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "Corefile"
    file.write_text("# nothing yet\n(snippet) {\n    errors\n}\n")
    with Kdns(file, "-dns.port", str(port)) as kdns:
        assert alive(port)
        file.write_text(WHOAMI.format(port=port).replace("    bind 127.0.0.1\n", ""))
        kdns.process.send_signal(signal.SIGUSR1)
        kdns.wait_for("Reloading complete")
        file.write_text("")
        kdns.process.send_signal(signal.SIGUSR1)
        kdns.wait_for(f"reload failed: {file} - no server block")
        assert alive(port)


def test_standard_input(tmp_path: Path) -> None:
    port = free_port()
    text = WHOAMI.format(port=port)
    kdns = subprocess.Popen(
        [sys.executable, "-m", "kdns", "-conf", "stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert kdns.stdin is not None and kdns.stdout is not None
    kdns.stdin.write(text.encode())
    kdns.stdin.close()
    kdns.stdin = None
    while b"kdns-" not in kdns.stdout.readline():
        assert kdns.poll() is None
    assert alive(port)
    kdns.terminate()
    kdns.communicate(timeout=10)


def test_nobody_reads_the_log(conf: Path) -> None:
    """The reader of standard output goes away: answers go on, and the process still ends in order."""
    conf.write_text(conf.read_text().replace("whoami", "whoami\n    log"))
    with Kdns(conf) as kdns:
        assert kdns.process.stdout is not None
        kdns.process.stdout.close()
        for _ in range(300):
            assert alive(port_of(conf))
        kdns.process.terminate()
        assert kdns.process.wait(10) == 0


def test_the_reader_of_the_log_stalls(conf: Path) -> None:
    """More log than a pipe holds, and nobody reads: answers go on."""
    conf.write_text(conf.read_text().replace("whoami", "whoami\n    log"))
    with Kdns(conf) as kdns:
        for _ in range(1500):
            assert alive(port_of(conf))
        assert kdns.stop() == 0


HOARD = """
import sys
from kdns import cli
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20
if sys.argv[1] == "give":
    cli._return_memory()
bytes(bytearray(30 * 2**20))  # a large block teaches the C library to take such from its heap
blocks = [b""] * 320
before = resident()
for number in range(320):
    blocks[number] = bytes(bytearray(b"x" * 2**16))
for number in range(320):
    blocks[number] = b""
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hoards")
def test_memory_that_is_free_is_given_back() -> None:
    grown = {
        mode: float(subprocess.run([sys.executable, "-c", HOARD, mode], capture_output=True, check=True).stdout)
        for mode in ("keep", "give")
    }
    assert grown["give"] < 5 < 15 < grown["keep"], grown
