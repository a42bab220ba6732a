"""Log lines, and readers that stall or go away."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns import limits, log
from kdns.log import Logger, Sink
from tests.support import ROOT, captured_log


class Pipe:
    """A sink that writes into a pipe."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.sink = Sink(self.writer)

    def read(self, octets: int) -> bytes:
        """So many octets, waited for."""
        data = b""
        while len(data) < octets:
            assert select.select([self.reader], [], [], 10)[0], data[-1000:]
            data += os.read(self.reader, octets - len(data))
        return data

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    # Its thread ends with the next line, when nobody can read it.
    if pipe.reader >= 0:
        pipe.close_reader()
    pipe.sink.write("end")
    until(lambda: pipe.sink.dropped > 0)
    until(lambda: not any(thread is pipe.sink._thread for thread in threading.enumerate()))
    pipe.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- lines -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Iterator[None]:
    yield
    log.set_debug(False)


@pytest.mark.usefixtures("quiet")
def test_levels_and_names() -> None:
    with captured_log() as lines:
        logger = Logger("cache")
        logger.debug("not yet")
        log.set_debug(True)
        assert log.debugging()
        logger.debug("a")
        logger.info("b")
        logger.warning("c")
        logger.error("d")
        Logger("").error("of the server")
        log.emit(log.FATAL, "e")
        log.line(".:53")
    assert lines.lines == [
        "[DEBUG] plugin/cache: a",
        "[INFO] plugin/cache: b",
        "[WARNING] plugin/cache: c",
        "[ERROR] plugin/cache: d",
        "[ERROR] of the server",
        "[FATAL] e",
        ".:53",
    ]


def test_a_name_in_a_packet_cannot_forge_a_line() -> None:
    with captured_log() as lines:
        Logger("x").info("a\n[ERROR] plugin/x: forged\r\x1b[2J\x7f\tz\0")
        log.line("a\nb")
    assert lines.lines == ["[INFO] plugin/x: a\\x0a[ERROR] plugin/x: forged\\x0d\\x1b[2J\\x7f z\\x00", "a\\x0ab"]


@given(st.text())
def test_cleaned_text_is_one_line(text: str) -> None:
    cleaned = log.clean(text)
    assert not [char for char in cleaned if ord(char) < 32 or ord(char) == 127]
    if text.isprintable():
        assert cleaned == text


# --- the sink --------------------------------------------------------------------------------------------------------


def test_lines_arrive_in_order(pipe: Pipe) -> None:
    lines = [f"line {number}" for number in range(1000)]
    for line in lines:
        pipe.sink.write(line)
    expected = "".join(line + "\n" for line in lines).encode()
    assert pipe.read(len(expected)) == expected
    pipe.sink.flush(5)
    assert pipe.sink.dropped == 0


def test_lines_are_cut_and_always_encodable(pipe: Pipe) -> None:
    pipe.sink.write("x" * (limits.LOG_LINE + 100))
    pipe.sink.write("é \udc80")
    assert pipe.read(limits.LOG_LINE + 1) == b"x" * limits.LOG_LINE + b"\n"
    expected = "é \\udc80\n".encode()
    assert pipe.read(len(expected)) == expected


def test_without_lines_there_is_no_thread() -> None:
    sink = Sink(-1)
    sink.flush(5)
    assert sink._thread is None


def test_a_stalled_reader_costs_lines_not_memory_or_time(pipe: Pipe) -> None:
    line = "x" * 4000
    for _ in range(2 * limits.LOG_BUFFER // len(line)):
        pipe.sink.write(line)
    dropped = pipe.sink.dropped
    assert dropped > 0
    assert pipe.sink._waiting <= limits.LOG_BUFFER
    started = time.monotonic()
    for _ in range(1000):
        pipe.sink.write(line)
    assert time.monotonic() - started < 1
    assert pipe.sink.dropped == dropped + 1000
    started = time.monotonic()
    pipe.sink.flush(0.05)
    assert time.monotonic() - started < 5
    # When it reads again, what waited is there, and new lines are taken.
    stop = threading.Event()
    received: list[bytes] = []

    def drain() -> None:
        while not stop.is_set() or not b"".join(received[-2:]).endswith(b"again\n"):
            received.append(os.read(pipe.reader, 1 << 16))

    thread = threading.Thread(target=drain)
    thread.start()
    pipe.sink.flush(10)
    assert pipe.sink._waiting == 0
    stop.set()
    pipe.sink.write("again")
    thread.join(10)
    assert b"".join(received).endswith(b"again\n")
    assert pipe.sink.dropped == dropped + 1000


def test_a_reader_that_goes_away_costs_all_further_lines(pipe: Pipe) -> None:
    pipe.sink.write("first")
    assert pipe.read(6) == b"first\n"
    pipe.close_reader()
    pipe.sink.write("second")
    until(lambda: pipe.sink.dropped == 1)
    for _ in range(100):
        pipe.sink.write("more")
    assert pipe.sink.dropped == 101
    pipe.sink.flush(5)
    assert (pipe.sink._waiting, pipe.sink._lines) == (0, [])


def test_a_reader_that_goes_away_while_it_stalls(pipe: Pipe) -> None:
    lines = 300_000 // 1001
    for _ in range(lines):
        pipe.sink.write("x" * 1000)
    pipe.close_reader()
    # Those in the pipe count as written if their batch was.
    in_pipe = 65536 // 1001
    until(lambda: pipe.sink.dropped >= lines - in_pipe)
    pipe.sink.flush(5)
    assert pipe.sink.dropped <= lines
    assert pipe.sink._waiting == 0


def test_somebody_made_the_pipe_non_blocking(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    data = "x" * 4000
    for _ in range(50):
        pipe.sink.write(data)
    assert pipe.read(50 * 4001) == (data.encode() + b"\n") * 50
    pipe.sink.flush(5)
    assert pipe.sink.dropped == 0


def test_many_threads_may_write(pipe: Pipe) -> None:
    def write(label: str) -> None:
        for number in range(200):
            pipe.sink.write(f"{label}{number:03}")

    threads = [threading.Thread(target=write, args=(label,)) for label in "abcd"]
    for thread in threads:
        thread.start()
    received = pipe.read(4 * 200 * 5).decode().split()
    for thread in threads:
        thread.join()
    for label in "abcd":
        assert [line for line in received if line[0] == label] == [f"{label}{number:03}" for number in range(200)]


def test_lines_that_were_dropped_are_counted_for_all() -> None:
    before = log.set_sink(Sink(-1))
    try:
        assert log.dropped() == 0
        Logger("x").info("to nowhere")
        until(lambda: log.dropped() == 1)
        log.flush(5)
    finally:
        log.set_sink(before)


def test_a_process_whose_reader_has_gone_lives_on_and_ends_well() -> None:
    code = """
import os, sys
from kdns import log
from kdns.log import Logger
sys.stdin.readline()
for number in range(10_000):
    Logger("x").info("x" * 100)
log.flush(5)
sys.stderr.write(f"{log.dropped()}\\n")
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, errors = process.communicate(b"go\n", timeout=30)
    assert process.returncode == 0
    assert int(errors) == 10_000


def test_what_libraries_log_becomes_one_line_of_ours() -> None:
    logger = logging.Logger("asyncio")
    logger.addHandler(log.FromPython())
    with captured_log() as lines:
        logger.warning("socket.send() raised exception.")
        try:
            raise OSError(24, "Too many open files")
        except OSError:
            logger.exception("accept failed\nsocket: 8")
    assert lines.lines == [
        "[WARNING] asyncio: socket.send() raised exception.",
        "[ERROR] asyncio: accept failed: OSError(24, 'Too many open files')",
    ]


def test_without_threads_lines_are_let_go_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    read, write = os.pipe()
    sink = Sink(write)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        sink.write("lost")
    assert sink.dropped == 1
    sink.write("found")
    sink.flush(5)
    assert os.read(read, 100) == b"found\n"
    os.close(read)
    os.close(write)
