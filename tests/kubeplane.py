"""A real Kubernetes control plane on loopback for tests: etcd, kube-apiserver and, if wanted, the controllers.

The binaries come from the directory that ``KUBEBUILDER_ASSETS`` names, as envtest has it; `available` says whether they
and ``kubectl`` are there.  Each component can be killed and started again on its old data::

    with KubePlane(tmp_path, controllers=True) as plane:
        plane.kubectl("apply", "-f", "-", input=manifest)
        plane.kill("kube-apiserver")
        plane.run("kube-apiserver")
        plane.wait_ready()

``admin_config`` is a kubeconfig that may do anything, ``dns_config`` one whose user may only list and watch what a DNS
server reads (`forbid` and `permit` take that right away and give it back).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests.support import free_port

ASSETS = os.environ.get("KUBEBUILDER_ASSETS", "")
CONTROLLERS = (
    "node-lifecycle-controller,taint-eviction-controller,serviceaccount-controller,endpointslice-controller,"
    "endpoints-controller,endpointslice-mirroring-controller,deployment-controller,replicaset-controller,"
    "statefulset-controller,namespace-controller,garbage-collector-controller"
)
DNS_USER = "system:serviceaccount:kube-system:kdns"
RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: kdns}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces, endpoints], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
- {apiGroups: [multicluster.x-k8s.io], resources: [serviceimports], verbs: [list, watch]}
"""
BINDING = f"""
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: kdns}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kdns}}
subjects: [{{kind: User, name: "{DNS_USER}"}}]
"""
CONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: local, cluster: {{server: "{url}", certificate-authority: {ca}}}}}]
users: [{{name: local, user: {{token: {token}}}}}]
contexts: [{{name: local, context: {{cluster: local, user: local}}}}]
current-context: local
"""
NODE = """
apiVersion: v1
kind: Node
metadata: {{name: node-{number}, labels: {{topology.kubernetes.io/zone: zone-{zone}}}}}
status:
  allocatable: {{cpu: "1000", memory: 1000Gi, pods: "10000"}}
  capacity: {{cpu: "1000", memory: 1000Gi, pods: "10000"}}
"""


def available() -> bool:
    """Whether a plane can be started here."""
    needed = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
    return bool(ASSETS) and all((Path(ASSETS) / name).exists() for name in needed) and bool(shutil.which("kubectl"))


class KubePlane:
    """See the top of this module."""

    def __init__(self, directory: Path, *, controllers: bool = False, nodes: int = 2, assets: str = ASSETS) -> None:
        self.directory, self.controllers, self.nodes = directory, controllers, nodes
        self._assets = Path(assets)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._port = free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self.ca_file = str(directory / "certs" / "apiserver.crt")
        self.admin_config, self.dns_config = directory / "admin.kubeconfig", directory / "dns.kubeconfig"
        self._commands = self._make_commands()

    def _make_commands(self) -> dict[str, list[str]]:
        etcd, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        tokens, key, admin = self.directory / "tokens.csv", self.directory / "sa.key", self.admin_config
        served = ("--bind-address=127.0.0.1", f"--kubeconfig={admin}", "--leader-elect=false")
        return {
            "etcd": [
                f"--data-dir={self.directory / 'etcd'}", "--unsafe-no-fsync", "--log-level=error",
                f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            ],
            "kube-apiserver": [
                f"--etcd-servers={etcd}", f"--secure-port={self._port}", "--bind-address=127.0.0.1",
                f"--cert-dir={self.directory / 'certs'}", f"--token-auth-file={tokens}", "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/12,fd00:10:96::/112",
                f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
                "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
            ],
            "kube-controller-manager": [
                *served, f"--controllers={CONTROLLERS}", "--use-service-account-credentials=false",
                f"--cert-dir={self.directory / 'certs-cm'}", f"--secure-port={free_port()}",
            ],
            "kube-scheduler": [
                *served, f"--cert-dir={self.directory / 'certs-s'}", f"--secure-port={free_port()}",
            ],
            "kwok": [
                f"--kubeconfig={admin}", "--manage-all-nodes", "--cidr=10.244.0.0/16", "--node-ip=192.0.2.10",
                f"--server-address=127.0.0.1:{free_port()}",
            ],
        }  # fmt: skip

    def __enter__(self) -> KubePlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything; about five seconds."""
        self.directory.mkdir(exist_ok=True)
        subprocess.run(
            ["openssl", "genrsa", "-out", self.directory / "sa.key", "2048"], check=True, capture_output=True
        )
        users = f'admin-token,admin,admin,"system:masters"\ndns-token,{DNS_USER},kdns\n'
        (self.directory / "tokens.csv").write_text(users)
        for file, token in ((self.admin_config, "admin-token"), (self.dns_config, "dns-token")):
            file.write_text(CONFIG.format(url=self.url, ca=self.ca_file, token=token))
        self.run("etcd", "kube-apiserver")
        self.wait_ready()
        self.kubectl("apply", "-f", "-", input=RIGHTS)
        self.permit()
        if self.controllers:
            self.run("kube-controller-manager", "kube-scheduler", "kwok")
            made = [NODE.format(number=number, zone=number % 3) for number in range(1, self.nodes + 1)]
            self.kubectl("apply", "-f", "-", input="---".join(made))

    def stop(self) -> None:
        """End everything."""
        self.kill(*reversed(self._running))

    def run(self, *names: str) -> None:
        """Start components that do not run."""
        for name in names:
            with open(self.directory / f"{name}.log", "ab") as log:
                command = [self._assets / name, *self._commands[name]]
                self._running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, *names: str) -> None:
        """SIGKILL components."""
        for name in names:
            process = self._running.pop(name)
            process.kill()
            process.wait()

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Wait until the API server says that it is ready; raises TimeoutError with the end of its log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._ask_kubectl(["get", "--raw", "/readyz"]).returncode == 0:
                return
            time.sleep(0.2)
        raise TimeoutError((self.directory / "kube-apiserver.log").read_text()[-2000:])

    def kubectl(self, *arguments: str, input: str = "") -> str:
        """What the command prints; raises RuntimeError with its complaint."""
        done = self._ask_kubectl(arguments, input)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _ask_kubectl(self, arguments: Iterable[str], input: str = "") -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "--kubeconfig", str(self.admin_config), *arguments]
        return subprocess.run(command, input=input, capture_output=True, text=True)

    def forbid(self) -> None:
        """Take the DNS user's rights away."""
        self.kubectl("delete", "clusterrolebinding", "kdns")

    def permit(self) -> None:
        """Give the DNS user's rights (back)."""
        self.kubectl("apply", "-f", "-", input=BINDING)
