"""A fast client of the API server: one connection that is kept, where kubectl takes 100 ms to start."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias
from urllib.parse import quote

from tests.kube.controlplane import ADMIN, ControlPlane

Object: TypeAlias = dict[str, Any]
TROUBLE = (OSError, http.client.HTTPException)
"""What a request raises when the API server is away."""

_GROUPS = dict.fromkeys(("namespaces", "services", "pods", "secrets"), "api/v1") | {
    "clusterrolebindings": "apis/rbac.authorization.k8s.io/v1",
    "endpointslices": "apis/discovery.k8s.io/v1",
}


class ApiClient:
    """Requests of one user, one after the other."""

    def __init__(self, control_plane: ControlPlane, token: str = ADMIN) -> None:
        self._token = token
        context = ssl.create_default_context(cafile=str(control_plane.authority))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._link = http.client.HTTPSConnection("127.0.0.1", control_plane.port, context=context, timeout=10)

    def request(self, method: str, path: str, body: Object | None = None, patch: str = "merge") -> Object:
        """The answer's object; raises one of `TROUBLE`, RuntimeError when the request is refused."""
        kind = f"application/{patch}-patch+json" if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        kept = self._link.sock is not None
        try:
            self._link.request(method, "/" + path, json.dumps(body) if body else None, headers)
            response = self._link.getresponse()
            found: Object = json.loads(response.read())
        except (*TROUBLE, ValueError):
            self._link.close()
            if kept:  # the server may have closed it since the last request
                return self.request(method, path, body, patch)
            raise
        if response.status >= 400:
            raise RuntimeError(f"{method} {path}: {found}")
        return found

    def create(self, kind: str, item: Object) -> Object:
        """POST an object."""
        return self.request("POST", place(kind, item["metadata"].get("namespace", "")), item)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """DELETE an object."""
        self.request("DELETE", f"{place(kind, namespace)}/{name}")

    def patch_status(
        self, kind: str, namespace: str, name: str, status: Object, patch: str = "strategic-merge"
    ) -> None:
        """Change an object's status as its manager does: lists of named things by their names; ``merge``: whole."""
        self.request("PATCH", f"{place(kind, namespace)}/{name}/status", {"status": status}, patch)

    def close(self) -> None:
        """Hang up."""
        self._link.close()


def place(kind: str, namespace: str) -> str:
    """The path of a kind, in a namespace if it has one."""
    inner = f"namespaces/{quote(namespace)}/" if namespace else ""
    return f"{_GROUPS[kind]}/{inner}{kind}"


@contextmanager
def client(control_plane: ControlPlane, token: str = ADMIN) -> Iterator[ApiClient]:
    """One, closed in the end."""
    made = ApiClient(control_plane, token)
    try:
        yield made
    finally:
        made.close()


def until(right: Callable[[], bool], seconds: float, pause: float = 0.002) -> float:
    """Seconds until it is; raises AssertionError when that takes longer than ``seconds``."""
    started = time.monotonic()
    while not right():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds:g} s")
        time.sleep(pause)
    return time.monotonic() - started


def attempt(action: Callable[[], object]) -> bool:
    """Whether it worked, now or the time before, when the answer was lost."""
    try:
        action()
    except (*TROUBLE, RuntimeError, ValueError) as error:
        return "AlreadyExists" in str(error)
    return True
