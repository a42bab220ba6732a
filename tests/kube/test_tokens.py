"""How kdns proves to a real API server who it is: a pod's service account, and a kubeconfig with an exec plugin.

Both are Kubernetes tokens here, as `kubectl create token` asks for them, for the ServiceAccount of deploy/kubernetes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.pod import impossible
from tests.kube.apiclient import ApiClient, attempt, client, until
from tests.kube.controlplane import ControlPlane
from tests.kube.expected import NOWHERE
from tests.kube.served import Asker, lag, serving
from tests.support import ROOT

NAME = "kubernetes.default.svc.cluster.local."
SPACE = "kube-system"
FILE_SEEN = 5.0
"""Seconds from a new token in its file until the next change is answered."""
EXEC_SEEN = 15.0
"""The same for an exec plugin: it is run every few seconds, and takes a second on a busy machine."""

# A pod's file system, as far as it matters here.
POD = """
    mount -t tmpfs tmpfs "$(realpath /var/run)"
    mkdir -p /var/run/secrets/kubernetes.io
    ln -s "$0" /var/run/secrets/kubernetes.io/serviceaccount
    exec "$@"
"""


class Tokens:
    """A ServiceAccount's tokens, each of which a Secret's end revokes."""

    def __init__(self, control_plane: ControlPlane, api: ApiClient) -> None:
        self._kubectl = control_plane.kubectl
        self._api = api

    def issue(self, lease: str) -> str:
        """A new one."""
        self._api.create("secrets", {"metadata": {"name": lease, "namespace": SPACE}})
        bound = ("--bound-object-kind=Secret", f"--bound-object-name={lease}")
        return self._kubectl("-n", SPACE, "create", "token", "kdns", *bound).strip()

    def revoke(self, lease: str) -> None:
        """The API server takes it no more, once it has forgotten that it has just taken it."""
        self._api.delete("secrets", SPACE, lease)


class ServiceAccount:
    """The directory that the kubelet keeps in a pod: links to a directory of which there is a new one each time."""

    def __init__(self, directory: Path, authority: Path) -> None:
        self.directory = directory
        self._authority = authority
        directory.mkdir()
        for name in ("token", "ca.crt"):
            (directory / name).symlink_to(Path("..data") / name)

    def write(self, token: str) -> None:
        """What is in there from now on."""
        fresh = self.directory / f"..{time.monotonic_ns()}"
        fresh.mkdir()
        (fresh / "token").write_text(token)
        (fresh / "ca.crt").write_text(self._authority.read_text())
        link = self.directory / "..data_tmp"
        link.symlink_to(fresh.name)
        link.rename(self.directory / "..data")

    def command(self, port: int) -> list[str]:
        """How to run a program in the pod."""
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        place = ["env", "KUBERNETES_SERVICE_HOST=127.0.0.1", f"KUBERNETES_SERVICE_PORT={port}"]
        return ["unshare", "--mount", *user, "sh", "-euc", POD, str(self.directory), *place]


class Plugin:
    """An exec plugin that prints what it is told to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.user = {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": "cat",
                "args": [str(file)],
                "interactiveMode": "Never",
            }
        }

    def write(self, token: str) -> None:
        """What it prints from now on."""
        credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(credential | {"status": {"token": token}}))
        fresh.rename(self._file)


@pytest.fixture
def api(control_plane: ControlPlane) -> Iterator[ApiClient]:
    with client(control_plane) as api:
        yield api


@pytest.mark.skipif(bool(impossible()), reason=impossible())
def test_tokens_that_are_revoked_and_renewed(control_plane: ControlPlane, api: ApiClient) -> None:
    tokens = Tokens(control_plane, api)
    control_plane.kubectl("apply", "-k", str(ROOT / "deploy" / "kubernetes"))
    with ExitStack() as stack:
        stack.callback(control_plane.remove, ROOT / "deploy" / "kubernetes")
        account = ServiceAccount(control_plane.state / "serviceaccount", control_plane.authority)
        plugin = Plugin(control_plane.state / "credential.json")
        kubeconfig = control_plane.state / "exec.kubeconfig"
        control_plane.kubeconfig(kubeconfig, plugin.user)
        first = tokens.issue("lease-1")
        account.write(first)
        plugin.write(first)
        within = account.command(control_plane.port)
        in_pod = stack.enter_context(serving(control_plane.state, "", within))
        by_plugin = stack.enter_context(serving(control_plane.state, f"kubeconfig {kubeconfig}"))
        known = {(NAME, "A"): in_pod.ask(NAME)}
        assert by_plugin.ask(NAME) == known[NAME, "A"]
        askers = [stack.enter_context(Asker(served, known)) for served in (in_pod, by_plugin)]

        tokens.revoke("lease-1")
        with control_plane.without("kube-apiserver"):
            pass  # so that it forgets, and everybody has to ask anew
        until(lambda: attempt(lambda: tokens.issue("lease-2")), 60, pause=0.05)
        for served in (in_pod, by_plugin):
            until(lambda served=served: "401 Unauthorized" in served.process.read(), 20, pause=0.05)  # type: ignore[misc]
        second = tokens.issue("lease-3")
        account.write(second)
        plugin.write(second)
        since = time.monotonic()
        made = {"metadata": {"name": "renewed", "namespace": SPACE}, "spec": {"ports": [{"port": 80}]}}
        api.create("services", made)
        stack.callback(api.delete, "services", SPACE, "renewed")
        name = f"renewed.{SPACE}.svc.cluster.local."
        in_file = lag(in_pod, name, NOWHERE.__ne__, since, FILE_SEEN)
        by_exec = lag(by_plugin, name, NOWHERE.__ne__, since, EXEC_SEEN)
        print(f"after a new token in its file: {in_file:.3f} s, out of an exec plugin: {by_exec:.3f} s")
    for asker in askers:
        assert not asker.wrong, (len(asker.wrong), asker.wrong[:5])
