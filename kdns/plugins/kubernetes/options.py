"""The options of the ``kubernetes`` directive, with CoreDNS's error texts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from kdns.cluster import names, selectors
from kdns.cluster.cluster import AUDIT, Settings
from kdns.cluster.names import Options
from kdns.corefile import Directive
from kdns.name import IN_ADDR_ARPA, IP6_ARPA, ROOT, Name, from_labels, to_text
from kdns.plugin import Site
from kdns.values import BadValue, duration

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
MAX_AGE: Final = 86_400.0
"""Seconds for which a snapshot is believed, unless ``max_age`` says otherwise."""
_TLS_FILES: Final = ("client-cert", "client-key", "certificate-authority")


class Reading:
    """What one ``kubernetes`` directive says."""

    def __init__(self, use: Directive, site: Site) -> None:
        """Raises CorefileError for the first thing wrong."""
        zones = use.zones(use.args, site.zones)
        # CoreDNS takes these two for zones that are not reverse; alone they are accepted, for what good it may do.
        if names.primary(zones) is None and not {IN_ADDR_ARPA, IP6_ARPA} & set(zones):
            raise use.error("non-reverse zone name must be used")
        self.options = Options(zones)
        self.settings = Settings()
        self.fall: tuple[Name, ...] = ()
        """Zones in which names that don't exist fall through to the next plugin."""
        self.timeout = 5.0
        """Seconds for which a start waits for the cluster."""
        self.snapshot = ""
        """The file of the snapshot; empty: there is none."""
        self.max_age = MAX_AGE
        """Seconds for which it is believed."""
        self.warnings: list[str] = []
        self._site = site
        last = use
        for last in use.body or ():
            reader = _READERS.get(last.name)
            if reader is None:
                raise last.unknown()
            if last.body is not None and last.name != "snapshot":
                raise last.error("Unexpected token '{', expecting argument")
            reader(self, last)
        self._check(last)
        verified = self.options.pods == "verified"
        self._from(pods=verified, pod_labels=verified and "metadata" in site.plugins)

    def _check(self, last: Directive) -> None:
        """What options say together."""
        if self.options.namespaces and self.options.selected:
            raise last.error("namespaces and namespace_labels cannot both be set")
        settings = self.settings
        if settings.manifests and (settings.kubeconfig or settings.endpoint):
            raise last.error("manifests cannot be used together with endpoint or kubeconfig")
        if settings.manifests and self.snapshot:
            raise last.error("manifests need no snapshot: they are files themselves")
        for zone in self.options.multicluster:
            if zone not in self.options.zones:
                known = " ".join(map(to_text, self.options.zones))
                raise last.error(
                    f"is not authoritative for the multicluster zone {to_text(zone)} (authoritative zones: [{known}])"
                )
        if self.options.zonal and not settings.endpoints:
            raise last.error("zonal requires the endpoint cache; remove noendpoints")

    def _name(self, **changes: Any) -> None:
        self.options = replace(self.options, **changes)

    def _from(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)

    # -- where the objects come from

    def _manifests(self, option: Directive) -> None:
        self._from(manifests=self._site.path(option.arg()))

    def _endpoint(self, option: Directive) -> None:
        urls = option.between(1)
        if len(urls) > 1:
            self.warnings.append(
                f"Multiple endpoints have been deprecated, only the first specified endpoint '{urls[0]}' is used"
            )
        self._from(endpoint=urls[0])

    def _tls(self, option: Directive) -> None:
        for what, file in zip(_TLS_FILES, option.exactly(3), strict=True):
            if not os.access(file, os.R_OK):
                raise option.error(f"unable to read {what} {file}")
        self._from(tls=option.args)

    def _kubeconfig(self, option: Directive) -> None:
        file, *context = option.between(1, 2)
        if not os.path.exists(file):
            raise option.error(f"stat {file}: no such file or directory")
        self._from(kubeconfig=file, context=context[0] if context else "")

    def _qps(self, option: Directive) -> None:
        text = option.arg()
        if not _FLOAT.fullmatch(text):
            raise option.error(f'invalid {option.name} "{text}": strconv.ParseFloat: parsing "{text}": invalid syntax')
        if float(text) < 0:
            raise option.error(f"{option.name} must be >= 0")
        self._from(qps=float(text))

    def _burst(self, option: Directive) -> None:
        self._from(burst=_count(option))

    def _max_inflight(self, option: Directive) -> None:
        self._from(max_inflight=_count(option))

    def _timeout(self, option: Directive) -> None:
        text = option.between(1)[0]
        try:
            self.timeout = duration(text)
        except BadValue as error:
            raise option.error(f"failed to parse startup_timeout: {text}, {error}") from None

    def _audit(self, option: Directive) -> None:
        text = option.optional()
        self._from(audit=0.0 if text == "off" else option.duration(text, 1.0) if text else AUDIT)

    def _snapshot(self, option: Directive) -> None:
        self.snapshot = self._site.path(option.arg())
        if not self.snapshot or self.snapshot.endswith("/"):
            raise option.error(f"'{option.args[0]}' is not the name of a file")
        for inner in option.options("max_age"):
            self.max_age = inner.duration(inner.arg(), 1.0)

    # -- which objects

    def _namespaces(self, option: Directive) -> None:
        wanted = {from_labels([text.lower().encode()], b"") for text in option.between(1)}
        self._name(namespaces=self.options.namespaces | wanted)

    def _namespace_labels(self, option: Directive) -> None:
        self._from(namespace_labels=_selector(option, "namespace_label"))
        self._name(selected=True)

    def _labels(self, option: Directive) -> None:
        self._from(labels=_selector(option, "label"))

    def _noendpoints(self, option: Directive) -> None:
        option.exactly(0)
        self._from(endpoints=False)

    # -- which names

    def _pods(self, option: Directive) -> None:
        mode = option.arg()
        if mode not in ("disabled", "verified", "insecure"):
            raise option.error(f"wrong value for pods: {mode},  must be one of: disabled, verified, insecure")
        self._name(pods=mode)

    def _pod_names(self, option: Directive) -> None:
        option.exactly(0)
        self._name(pod_names=True)
        self._from(pod_names=True)

    def _ttl(self, option: Directive) -> None:
        text = option.between(1)[0]
        if not _INTEGER.fullmatch(text):
            raise option.error(f'strconv.Atoi: parsing "{text}": invalid syntax')
        if not 0 <= int(text) <= 3600:
            raise option.error(f"ttl must be in range [0, 3600]: {int(text)}")
        self._name(ttl=int(text))

    def _fallthrough(self, option: Directive) -> None:
        self.fall = option.zones(option.args, (ROOT,))

    def _ignore(self, option: Directive) -> None:
        if option.args:
            if option.args[0] != "empty_service":
                raise option.error(f"unable to parse ignore value: '{option.args[0]}'")
            self._name(ignore_empty=True)

    def _multicluster(self, option: Directive) -> None:
        zones = option.zones(option.args, ())
        self._name(multicluster=zones)
        self._from(imports=bool(zones))

    def _zonal(self, option: Directive) -> None:
        option.exactly(0)
        self._name(zonal=True)
        self._from(zones=True)


_READERS: Final[dict[str, Callable[[Reading, Directive], None]]] = {
    "apiserver_burst": Reading._burst,
    "apiserver_max_inflight": Reading._max_inflight,
    "apiserver_qps": Reading._qps,
    "audit": Reading._audit,
    "endpoint": Reading._endpoint,
    "endpoint_pod_names": Reading._pod_names,
    "fallthrough": Reading._fallthrough,
    "ignore": Reading._ignore,
    "kubeconfig": Reading._kubeconfig,
    "labels": Reading._labels,
    "manifests": Reading._manifests,
    "multicluster": Reading._multicluster,
    "namespace_labels": Reading._namespace_labels,
    "namespaces": Reading._namespaces,
    "noendpoints": Reading._noendpoints,
    "pods": Reading._pods,
    "snapshot": Reading._snapshot,
    "startup_timeout": Reading._timeout,
    "tls": Reading._tls,
    "ttl": Reading._ttl,
    "zonal": Reading._zonal,
}


def _selector(option: Directive, what: str) -> str:
    """The label selector that the words are, joined by blanks."""
    text = " ".join(option.between(1))
    try:
        selectors.parse(text)
    except BadValue as error:
        raise option.error(f"unable to parse {what} selector value: '{text}': {error}") from None
    return text


def _count(option: Directive) -> int:
    text = option.arg()
    if not _INTEGER.fullmatch(text):
        raise option.error(f'invalid {option.name} "{text}": strconv.Atoi: parsing "{text}": invalid syntax')
    if int(text) < 0:
        raise option.error(f"{option.name} must be >= 0")
    return int(text)
