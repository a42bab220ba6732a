"""What the API server is asked for one kind of objects: pages, streams, changes.

Source: "Kubernetes API Concepts" (parameters of list and watch), KEP-3157 (``sendInitialEvents``).
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

from msgspec import Struct

PATHS: Final = {
    "namespaces": "/api/v1/namespaces",
    "services": "/api/v1/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/endpointslices",
    "pods": "/api/v1/pods",
    "serviceimports": "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports",
    "importedslices": "/apis/discovery.k8s.io/v1/endpointslices",
}
"""Where the API keeps the objects of all namespaces, by kind."""


class Selection(Struct, frozen=True):
    """Which objects of a kind are wanted, as the API's selectors; empty: all."""

    labels: str = ""
    fields: str = ""


ALL: Final = Selection()


class Request(Struct, frozen=True):
    """What to ask the API server next: GET ``target``."""

    verb: str
    """``list``: the answer is a page; ``watch``: lines without end."""
    target: str
    """Path and query."""
    wait: float
    """Seconds to wait before."""


class Asker:
    """Makes the requests for one kind; ``wait`` as in `Request`."""

    def __init__(self, kind: str, selection: Selection) -> None:
        self._path = PATHS[kind]
        chosen = {"labelSelector": selection.labels, "fieldSelector": selection.fields}
        self._chosen = {name: text for name, text in chosen.items() if text}

    def page(self, limit: int, token: str, wait: float) -> Request:
        """A page of the list; ``token`` is from the page before, empty for the first."""
        more = {"continue": token} if token else {}
        return self._request("list", self._chosen | {"limit": str(limit)} | more, wait)

    def probe(self, wait: float) -> Request:
        """A page that costs next to nothing: what counts is its version.  Selectors would make the server search."""
        return self._request("list", {"limit": "1"}, wait)

    def one(self, namespace: str, name: str) -> Request:
        """A list of one object, or of none: permission to list is enough.  ``namespace`` empty: it is in none."""
        fields = ",".join(filter(None, (f"metadata.name={name}", self._chosen.get("fieldSelector"))))
        path = self._path
        if namespace:
            above, _, plural = path.rpartition("/")
            path = f"{above}/namespaces/{quote(namespace, safe='')}/{plural}"
        return Request("list", f"{path}?{urlencode(self._chosen | {'fieldSelector': fields})}", 0.0)

    def stream(self, lifetime: int, wait: float) -> Request:
        """Everything, a bookmark that says so, and then all changes, for ``lifetime`` seconds."""
        return self._watch(lifetime, {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}, wait)

    def changes(self, version: str, lifetime: int, wait: float) -> Request:
        """All changes after a version, for ``lifetime`` seconds."""
        return self._watch(lifetime, {"resourceVersion": version}, wait)

    def _watch(self, lifetime: int, more: dict[str, str], wait: float) -> Request:
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(lifetime)}
        return self._request("watch", self._chosen | query | more, wait)

    def _request(self, verb: str, query: dict[str, str], wait: float) -> Request:
        return Request(verb, f"{self._path}?{urlencode(query)}", wait)
