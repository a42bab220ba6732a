"""A real Kubernetes cluster on loopback, out of the programs in KUBEBUILDER_ASSETS.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and kwok, which plays the kubelets: Pods on its Nodes
run, are ready and have addresses.  On Nodes that a test makes itself a Pod's status is what the test writes into it.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import free_port

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
CONTROLLERS = (
    "serviceaccount-controller",
    "endpointslice-controller",
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "daemonset-controller",
    "namespace-controller",
    "garbage-collector-controller",
)
NODES = 3
ADMIN, READER = "admin-token", "dns-token"
READER_NAME = "system:serviceaccount:kube-system:kdns"
SERVICES = "10.96.0.0/12,fd00:10:96::/112"
PATIENCE = 60.0
"""Seconds for a part to start."""

READING: list[dict[str, Any]] = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "reader"},
        "rules": [
            {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader"},
        "subjects": [{"kind": "User", "name": READER_NAME}],
    },
]
"""What a DNS server may do."""


def missing(assets: str) -> list[str]:
    """Which programs are not in this directory."""
    return [name for name in PROGRAMS if not (Path(assets) / name).is_file()]


class ControlPlane:
    """One cluster; its data and logs are in ``state``."""

    def __init__(self, assets: Path, state: Path, qps: int = 0) -> None:
        """``qps``: requests a second of controllers and scheduler; 0: their own bounds, slow for thousands."""
        self.port = free_port()
        self.state = state
        self.admin = state / "admin.kubeconfig"
        """May do everything."""
        self.reader = state / "reader.kubeconfig"
        """May list and watch what a DNS server reads."""
        self.authority = state / "certs" / "apiserver.crt"
        self._assets = assets
        self._pace = [f"--kube-api-qps={qps}", f"--kube-api-burst={qps}"] if qps else []
        self._commands: dict[str, Sequence[str | Path]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all parts and wait until they are ready."""
        self._start_api()
        self._start_cluster()
        self.apply(*(_node(number) for number in range(NODES)), *READING)

    def _start_api(self) -> None:
        etcd = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        key = self._key()
        tokens = self.state / "tokens.csv"
        tokens.write_text(f'{ADMIN},admin,admin,"system:masters"\n{READER},{READER_NAME},reader\n')
        self._run(
            "etcd",
            f"--data-dir={self.state}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self.state}/certs",
            f"--service-cluster-ip-range={SERVICES}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            "--advertise-address=192.0.2.1",
            "--endpoint-reconciler-type=none",
        )
        deadline = time.monotonic() + PATIENCE
        while not self.authority.exists():
            self._check(deadline)
        self.kubeconfig(self.admin, {"token": ADMIN})
        self.kubeconfig(self.reader, {"token": READER})
        self.wait_ready()

    def _start_cluster(self) -> None:
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.admin}",
            "--leader-elect=false",
            f"--controllers={','.join(CONTROLLERS)}",
            *self._pace,
            f"--cert-dir={self.state}/certs-manager",
            f"--secure-port={free_port()}",
            "--bind-address=127.0.0.1",
        )
        self._run(
            "kube-scheduler",
            f"--kubeconfig={self.admin}",
            "--leader-elect=false",
            f"--cert-dir={self.state}/certs-scheduler",
            *self._pace,
            f"--secure-port={free_port()}",
            "--bind-address=127.0.0.1",
        )
        self._run(
            "kwok",
            f"--kubeconfig={self.admin}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--cidr=10.244.128.0/17",
            "--node-ip=192.0.2.10",
            f"--server-address=127.0.0.1:{free_port()}",
        )

    def stop(self) -> None:
        """Stop all parts, the last first."""
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in reversed(self._processes.values()):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self, name: str) -> None:
        """End a part as a power cut does."""
        self._processes[name].kill()
        self._processes[name].wait()

    def revive(self, name: str) -> None:
        """Start a part again that was killed."""
        self._run(name, *self._commands[name][1:])

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """A part is killed, and back afterwards whatever comes: other tests have the same cluster."""
        self.kill(name)
        try:
            yield
        finally:
            self.revive(name)

    def remove(self, folder: Path) -> None:
        """Delete what a Kustomize folder has, its Pods included: only when they are gone nobody counts them for his."""
        self.kubectl("delete", "--cascade=foreground", "--ignore-not-found", "-k", str(folder))

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """What kubectl prints as admin; raises RuntimeError with its complaint."""
        command = ["kubectl", f"--kubeconfig={self.admin}", *arguments]
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def apply(self, *objects: dict[str, Any], command: str = "apply") -> None:
        """Create or change objects; ``command``: ``create`` them without kubectl's annotation."""
        self.kubectl(command, "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def kubeconfig(self, file: Path, user: dict[str, Any], port: int = 0) -> None:
        """Write a kubeconfig for this user; ``port``: the API server's, or that of who stands before it."""
        server = {"server": f"https://127.0.0.1:{port or self.port}", "certificate-authority": str(self.authority)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": server}],
            "users": [{"name": "local", "user": user}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
            "current-context": "local",
        }
        file.write_text(json.dumps(content))

    def add_nodes(self, count: int) -> None:
        """More nodes that kwok plays."""
        self.apply(*(_node(NODES + number) for number in range(count)))

    def _key(self) -> Path:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        file = self.state / "sa.key"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        return file

    def _run(self, name: str, *flags: str | Path) -> None:
        self._commands[name] = [self._assets / name, *flags]
        with open(self.state / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(self._commands[name], stdout=log, stderr=log, cwd=self.state)

    def wait_ready(self) -> None:
        """Wait until the API server takes requests."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.kubectl("get", "--raw", "/readyz")
                return
            except RuntimeError:
                self._check(deadline)

    def _check(self, deadline: float) -> None:
        ended = [name for name, process in self._processes.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise NotStarted(f"the control plane does not start, see the logs in {self.state}: {ended}")
        time.sleep(0.1)


class NotStarted(Exception):
    """There is no control plane to be had here; the message says why."""


def _node(number: int) -> dict[str, Any]:
    name = f"node-{number}"
    labels = {
        "kubernetes.io/os": "linux",
        "kubernetes.io/hostname": name,
        "topology.kubernetes.io/zone": f"zone-{number}",
    }
    room = {"cpu": "1000", "memory": "1000Gi", "pods": "10000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "status": {"allocatable": room, "capacity": room},
    }
