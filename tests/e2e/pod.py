"""A pod to oneself: namespaces in which a Corefile finds every address, port and file that it names, as in a cluster.

A test starts a program in one with `command`; the program builds the rest around itself::

    pod = Pod(resolv_conf="nameserver 192.0.2.53\\n", upstreams=["192.0.2.53"])
    async with pod:                       # pod.upstreams["192.0.2.53"] answers on port 53, over there
        with pod.kdns() as kdns:          # kdns -conf /etc/coredns/Corefile
            ...

The pod has the address `Pod.ADDRESS`, files of its own in /etc and /var/run, and one link.  At the other end of it, in
a network namespace of their own, are the upstreams: sockets that this process opened there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.fakeapi import FakeApi
from tests.fakeupstream import Asked, FakeUpstream
from tests.support import ROOT, Kdns

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"


def command(module: str, *words: str) -> list[str]:
    """How to run ``tests.e2e.MODULE`` in namespaces of its own."""
    return [*_unshare(), sys.executable, "-m", f"tests.e2e.{module}", *words]


def _unshare() -> list[str]:
    # Whoever is not root becomes it in a user namespace.
    return ["unshare", "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])


@functools.cache
def impossible() -> str:
    """Why there can be no pods here; empty when there can."""
    for tool in ("unshare", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"{tool} is not on PATH"
    trial = "mount -t tmpfs tmpfs /etc && ip link add trial type veth peer name other"
    tried = subprocess.run([*_unshare(), "sh", "-c", trial], capture_output=True, text=True)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Pod:
    """See the top of this module."""

    ADDRESS = "10.244.0.2"
    _OUTSIDE = "10.244.0.1"

    def __init__(
        self,
        *,
        resolv_conf: str,
        upstreams: Iterable[str],
        coredns: Path | None = None,
        addresses: Iterable[str] = (),
    ) -> None:
        """``upstreams``: addresses of DNS servers outside; ``coredns``: what becomes /etc/coredns; ``addresses``: more
        of the pod's own."""
        _mount_tmpfs("/etc", "/var/run")
        self.api = FakeApi(tls=Path("/var/run"), tokens={"secret": None})
        self.upstreams = {address: _upstream(address) for address in upstreams}
        self._addresses = addresses
        Path("/etc/hosts").write_text(_HOSTS)
        Path("/etc/resolv.conf").write_text(resolv_conf)
        if coredns is not None:
            shutil.copytree(coredns, "/etc/coredns")
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Pod:
        inside = os.open("/proc/self/ns/net", os.O_RDONLY)
        _check(_LIBC.unshare(_CLONE_NEWNET))
        _ip(
            "link set lo up",
            f"link add eth0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{inside}",
            f"address add {self._OUTSIDE}/24 dev eth0",
            *(f"address add {address}/32 dev lo" for address in self.upstreams),
            "link set eth0 up",
        )
        for upstream in self.upstreams.values():
            await self._stack.enter_async_context(upstream)
        _check(_LIBC.setns(inside, _CLONE_NEWNET))
        os.close(inside)
        _ip(
            "link set lo up",
            f"address add {self.ADDRESS}/24 dev eth0",
            *(f"address add {address}/32 dev lo" for address in self._addresses),
            "link set eth0 up",
            f"route add default via {self._OUTSIDE}",
        )
        await self._stack.enter_async_context(self.api)
        _SERVICE_ACCOUNT.mkdir(parents=True)
        (_SERVICE_ACCOUNT / "token").write_text("secret")
        (_SERVICE_ACCOUNT / "ca.crt").write_text(Path(self.api.ca_file).read_text())
        os.environ |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.api.port)}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def kdns(self) -> Kdns:
        """Start it; call this in a thread of its own."""
        return Kdns("/etc/coredns/Corefile", cwd=Path("/"))


def _upstream(address: str) -> FakeUpstream:
    """A server that answers every A question with its own address, so that one sees who was asked."""
    upstream = FakeUpstream(host=address, port=53)

    async def script(asked: Asked) -> None:
        asked.send(asked.address(address) if asked.type == "A" else asked.reply())

    upstream.script = script
    return upstream


def _mount_tmpfs(*directories: str) -> None:
    for directory in directories:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", os.path.realpath(directory)], check=True)


def _ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, cwd=ROOT)


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
