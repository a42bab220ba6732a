"""The command ``kdns``: CoreDNS's flags, signals, exit codes and first lines."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import platform
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from kdns import __version__, corefile, log, plugins
from kdns.corefile import Corefile
from kdns.errors import KdnsError
from kdns.listen.loop import new_event_loop
from kdns.plugin import ORDER
from kdns.server import Server

_DEFAULT_FILE: Final = "Corefile"
_DEFAULT_TEXT: Final = ". {\n    whoami\n    log\n}\n"

_GC_THRESHOLD: Final = (20_000, 20, 50)

_M_TRIM_THRESHOLD: Final = -1
_SPARE: Final = 128 * 2**10
"""Octets that the C library may keep free at the end of its heap (its own default, as long as it does not adapt it)."""

STOP_ERROR: Final = 3
"""Exit code: the sockets could not be stopped in order."""
INTERRUPTED: Final = 2
"""Exit code: a second SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(_dashes(sys.argv[1:] if arguments is None else arguments))
    if options.extra:
        sys.stderr.write(f"extra command line arguments: {options.extra}\n")
        return 1
    if options.version:
        sys.stdout.write(version_text())
        return 0
    if options.plugins:
        sys.stdout.write(_plugins_text())
        return 0
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_serve(options))
    except (KdnsError, OSError) as error:
        log.flush()
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        log.flush()


def version_text() -> str:
    """The version in CoreDNS's two lines, which tools look for."""
    machine = platform.machine().replace("x86_64", "amd64").replace("aarch64", "arm64")
    return f"kdns-{__version__}\n{sys.platform}/{machine}, python{platform.python_version()}, \n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "kdns", description="A Kubernetes cluster DNS server.", allow_abbrev=False, add_help=False
    )
    parser.add_argument("--help", "--h", action="help", help="show these flags")
    parser.add_argument("--conf", default="", help='Corefile to load (default "Corefile"); stdin reads standard input')
    parser.add_argument("--dns.port", "--p", dest="port", type=_port, default=53, help="default port (default 53)")
    parser.add_argument("--pidfile", default="", help="path to write the process's number to")
    parser.add_argument("--plugins", action="store_true", help="list the plugins there are")
    parser.add_argument("--quiet", action="store_true", help="no first lines")
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("extra", nargs="*", help=argparse.SUPPRESS)
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return int(text)


def _dashes(arguments: Sequence[str]) -> list[str]:
    """Go's flags have one dash or two, and switches may be spelled out; ours are declared with two dashes."""
    out = [f"-{text}" if text.startswith("-") and not text.startswith("--") else text for text in arguments]
    return [text.removesuffix("=true") for text in out if not text.endswith("=false")]


def _plugins_text() -> str:
    lines = ["Server types:", "  dns", "", "Other plugins:"]
    lines += [f"  dns.{name}" for name in sorted({*plugins.BUILT_IN, *plugins.third_party()} - {"import"})]
    missing = sorted(set(ORDER) - set(plugins.BUILT_IN))
    return "\n".join([*lines, "", "CoreDNS's that kdns does not have yet:", *(f"  dns.{name}" for name in missing), ""])


def _loader(conf: str) -> Callable[[], Corefile]:
    """How to read the Corefile, now and at every reload.

    One without server blocks means CoreDNS's default at start; later it is an accident (a ConfigMap emptied, say), so
    it is refused.
    """
    read = _reader(conf)
    default = _parse(_DEFAULT_TEXT, "default")
    serving = False

    def load() -> Corefile:
        nonlocal serving
        found = read()
        if serving and not found.blocks:
            raise KdnsError(f"{conf or _DEFAULT_FILE} - no server block")
        serving = bool(found.blocks)
        return found if serving else default

    return load


def _reader(conf: str) -> Callable[[], Corefile]:
    if conf == "stdin":
        text = sys.stdin.read()
        return lambda: _parse(text, "stdin")
    if conf or os.path.exists(_DEFAULT_FILE):
        return lambda: _load(conf or _DEFAULT_FILE)
    return lambda: _parse("", "default")


def _load(file: str) -> Corefile:
    try:
        return corefile.load(file, os.environ)
    except OSError as error:
        raise KdnsError(f"open {file}: {error.strerror}") from error


def _parse(text: str, name: str) -> Corefile:
    return corefile.parse(text, name, env=os.environ, read=corefile.read_file, glob=corefile.glob_files)


def _return_memory() -> None:
    """Keep the C library from hoarding twice the largest block that it has seen: pages of lists are large.

    Without it 150,000 Pods cost 20 MiB more as soon as they have been listed a second time.  Other C libraries than
    glibc have no such habit, and no such function.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, _SPARE)
    except (AttributeError, OSError):
        return


async def _serve(options: argparse.Namespace) -> int:
    stopped: asyncio.Future[tuple[int, bool]] = asyncio.get_running_loop().create_future()
    server = Server(_loader(options.conf), options.port)
    _handle_signals(server, stopped, options.pidfile)
    logging.basicConfig(handlers=[log.FromPython()], level=logging.WARNING)
    _raise_file_limit()
    _return_memory()
    await server.start()
    if not options.quiet:
        for line in server.banner():
            log.line(line)
        for line in version_text().splitlines():
            log.line(line)
    if options.pidfile:
        _write_pid(options.pidfile)
    gc.collect()
    # What is there now stays, and answers make no cycles: the collector may look at less, and less often.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    code, graceful = await stopped
    try:
        await server.stop(graceful)
    except OSError as error:
        log.emit(log.ERROR, f"stopping: {error}")
        code = STOP_ERROR
    _remove_pid(options.pidfile)
    return code


def _raise_file_limit() -> None:
    """Open as many files as we may: the soft limit is for programs that use select(2).  Go's runtime does the same."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _write_pid(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")


def _remove_pid(path: str) -> None:
    if path:
        with suppress(OSError):
            os.remove(path)


def _handle_signals(server: Server, stopped: asyncio.Future[tuple[int, bool]], pidfile: str) -> None:
    """CoreDNS's signals: TERM, INT, QUIT, USR1, USR2, HUP."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[bool]] = set()

    def end(name: str, graceful: bool) -> None:
        if stopped.done():
            if name == "SIGINT":
                leave(INTERRUPTED)
            return
        log.emit(log.INFO, f"{name}: {'Shutting down servers then terminating' if graceful else 'Shutting down'}")
        stopped.set_result((0, graceful))

    def quit_now() -> None:
        log.emit(log.INFO, "SIGQUIT: Quitting process immediately")
        leave(0)

    def leave(code: int) -> None:
        _remove_pid(pidfile)
        log.flush()
        os._exit(code)

    def reload() -> None:
        log.emit(log.INFO, "SIGUSR1: Reloading")
        task = loop.create_task(server.reload(force=True))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGTERM, end, "SIGTERM", True)
    loop.add_signal_handler(signal.SIGINT, end, "SIGINT", False)
    loop.add_signal_handler(signal.SIGQUIT, quit_now)
    loop.add_signal_handler(signal.SIGUSR1, reload)
    loop.add_signal_handler(signal.SIGUSR2, log.emit, log.INFO, "SIGUSR2: binary upgrade is not supported, ignored")
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
