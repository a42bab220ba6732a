"""Log lines in CoreDNS's shape: ``[LEVEL] plugin/NAME: text`` on standard output, without a time stamp.

A reader that stalls or goes away must not stop the server: lines are handed to a writer thread through a bounded
buffer, and what does not fit is counted and let go.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Final

from kdns import limits

DEBUG: Final = "DEBUG"
INFO: Final = "INFO"
WARNING: Final = "WARNING"
ERROR: Final = "ERROR"
FATAL: Final = "FATAL"

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {9: " "}


class Sink:
    """Where the lines go: a file descriptor, written to by a thread of its own."""

    def __init__(self, fd: int = 1) -> None:
        self.dropped = 0
        """Lines let go because the buffer was full or the reader has gone."""
        self._fd = fd
        self._lines: list[bytes] = []
        self._waiting = 0
        self._gone = False
        self._thread: threading.Thread | None = None
        self._change = threading.Condition()

    def write(self, line: str) -> None:
        """Hand over one line without its line end; never waits, never raises."""
        data = line[: limits.LOG_LINE].encode("utf-8", "backslashreplace") + b"\n"
        with self._change:
            if self._gone or self._waiting + len(data) > limits.LOG_BUFFER or not self._started():
                self.dropped += 1
                return
            self._lines.append(data)
            self._waiting += len(data)
            self._change.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until all is written, at most so long."""
        with self._change:
            self._change.wait_for(lambda: self._gone or not self._waiting, seconds)

    def _started(self) -> bool:
        """Whether the writer runs; where no thread can be had it is tried again with the next line."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._lines))
                data = b"".join(self._lines)
                lines = len(self._lines)
                self._lines.clear()
            written = self._write_all(data)
            with self._change:
                self._waiting -= len(data)
                if not written:
                    self._gone = True
                    self.dropped += lines + len(self._lines)
                    self._lines.clear()
                    self._waiting = 0
                self._change.notify_all()
                if not written:
                    return

    def _write_all(self, data: bytes) -> bool:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                # Standard output may be a terminal or a pipe that somebody else made non-blocking.
                threading.Event().wait(0.05)
            except OSError:
                return False
        return True


_sink = Sink()
_debug = False


def set_sink(sink: Sink) -> Sink:
    """Send all lines to another sink; returns the one before."""
    global _sink
    before, _sink = _sink, sink
    return before


def set_debug(on: bool) -> None:
    """Let DEBUG lines through (the ``debug`` directive)."""
    global _debug
    _debug = on


def debugging() -> bool:
    """Whether DEBUG lines are let through."""
    return _debug


def dropped() -> int:
    """Lines let go so far (metric ``kdns_log_dropped_total``)."""
    return _sink.dropped


def flush(seconds: float = 0.5) -> None:
    """Wait until all lines are written, at most so long; for the end of the process."""
    _sink.flush(seconds)


def clean(text: str) -> str:
    """The text without raw control characters, so that a name in a packet cannot forge log lines."""
    return text if text.isprintable() else text.translate(_CONTROL)


def emit(level: str, text: str) -> None:
    """One line ``[LEVEL] text``."""
    if level != DEBUG or _debug:
        _sink.write(f"[{level}] {clean(text)}")


def line(text: str) -> None:
    """One line as it is: the process's first lines, and the query log's."""
    _sink.write(clean(text))


class FromPython(logging.Handler):
    """What asyncio and other libraries log, as our lines; on standard error it would wait for a stalled reader."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line, with the exception's last words instead of its traceback."""
        error = record.exc_info[1] if record.exc_info else None
        text = f"{record.name}: {record.getMessage().splitlines()[0]}"
        emit(WARNING if record.levelno < logging.ERROR else ERROR, f"{text}: {error!r}" if error else text)


class Logger:
    """Writes lines that begin with ``[LEVEL] plugin/NAME: ``."""

    __slots__ = ("_prefix",)

    def __init__(self, name: str) -> None:
        self._prefix = f"plugin/{name}: " if name else ""

    def debug(self, text: str) -> None:
        """Only with the ``debug`` directive."""
        emit(DEBUG, self._prefix + text)

    def info(self, text: str) -> None:
        """What an operator may like to know."""
        emit(INFO, self._prefix + text)

    def warning(self, text: str) -> None:
        """What an operator should look at."""
        emit(WARNING, self._prefix + text)

    def error(self, text: str) -> None:
        """What failed."""
        emit(ERROR, self._prefix + text)
