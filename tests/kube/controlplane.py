"""A real Kubernetes control plane on loopback: etcd, kube-apiserver and kube-controller-manager of KUBEBUILDER_ASSETS.

There are no kubelets: Nodes are objects, and a Pod's status is what a test writes into it.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import free_port

CONTROLLERS = (
    "serviceaccount-controller",
    "endpointslice-controller",
    "deployment-controller",
    "replicaset-controller",
    "statefulset-controller",
    "namespace-controller",
)
ADMIN, READER = "admin-token", "dns-token"
SERVICES = "10.96.0.0/12,fd00:10:96::/112"


class ControlPlane:
    """One cluster; its data and logs are in ``state``."""

    def __init__(self, assets: Path, state: Path) -> None:
        self.port = free_port()
        self.state = state
        self.admin = state / "admin.kubeconfig"
        """May do everything."""
        self._assets = assets
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all parts and wait until they are ready."""
        etcd = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        key = self._key()
        tokens = self.state / "tokens.csv"
        tokens.write_text(f'{ADMIN},admin,admin,"system:masters"\n{READER},reader,reader\n')
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
        self._wait_for(self.state / "certs" / "apiserver.crt")
        self.kubeconfig(self.admin, ADMIN)
        self._wait_ready()
        self._run(
            "kube-controller-manager",
            f"--kubeconfig={self.admin}",
            "--leader-elect=false",
            f"--controllers={','.join(CONTROLLERS)}",
            f"--cert-dir={self.state}/certs-manager",
            f"--secure-port={free_port()}",
            "--bind-address=127.0.0.1",
        )

    def stop(self) -> None:
        """Stop all parts, the last first."""
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            process.wait(30)

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

    def set_status(self, kind: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        """Write an object's status."""
        patch = json.dumps({"status": status})
        self.kubectl("-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)

    def kubeconfig(self, file: Path, token: str) -> None:
        """Write a kubeconfig for whom the token is."""
        authority = str(self.state / "certs" / "apiserver.crt")
        server = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": authority}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": server}],
            "users": [{"name": "local", "user": {"token": token}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
            "current-context": "local",
        }
        file.write_text(json.dumps(content))

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

    def _run(self, name: str, *flags: str) -> None:
        with open(self.state / f"{name}.log", "wb") as log:
            process = subprocess.Popen([self._assets / name, *flags], stdout=log, stderr=log, cwd=self.state)
        self._processes.append(process)

    def _wait_for(self, file: Path) -> None:
        deadline = time.monotonic() + 60
        while not file.exists():
            self._check(deadline)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.kubectl("get", "--raw", "/readyz")
                return
            except RuntimeError:
                self._check(deadline)

    def _check(self, deadline: float) -> None:
        ended = [process.args for process in self._processes if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise AssertionError(f"the control plane does not start, see the logs in {self.state}: {ended}")
        time.sleep(0.1)
