"""ready: tell over HTTP when every plugin is ready to answer.

``ready [ADDRESS] { monitor until-ready|continuously }``

``GET /ready`` on ADDRESS (default ``:8181``) answers 200 ``OK`` when all plugins of all server blocks are ready, and
503 when not: the first line names the plugins, as CoreDNS does, and further lines say why.  With ``monitor
until-ready`` (the default) a plugin that was ready once is not asked again: losing the API server later does not take
the process out of service.  While the process ends the answer is 503 ``Shutting down``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kdns.corefile import Directive, only
from kdns.plugin import HttpPath, Plugin, Site

_DEFAULT: Final = ":8181"
_PLAIN: Final = "text/plain; charset=utf-8"


class Ready(Plugin):
    """Answers ``/ready``."""

    name = "ready"
    handles = False

    def __init__(self, site: Site, address: str, continuously: bool) -> None:
        self._process = site.process
        self._log = site.logger(self.name)
        self._continuously = continuously
        self._was_ready: set[Plugin] = set()
        self._last_reasons = ""
        site.http.append(HttpPath(address, "/ready", self._respond))

    @classmethod
    def setup(cls, uses: Sequence[Directive], site: Site) -> Plugin:
        """``ready [ADDRESS] { monitor until-ready|continuously }``."""
        use = only(uses)
        address, monitor = use.optional(_DEFAULT), "until-ready"
        use.listen_address(address)
        for option in use.options("monitor"):
            monitor = option.arg()
            if monitor not in ("until-ready", "continuously"):
                raise option.error(f"monitor type '{monitor}' not supported")
        return cls(site, address, monitor == "continuously")

    def _respond(self, target: str) -> tuple[int, str, bytes]:
        if self._process.stopping:
            return 503, _PLAIN, b"Shutting down"
        reasons: set[tuple[str, str]] = set()  # a plugin may be in several server blocks
        for plugin in self._process.plugins:
            if plugin in self._was_ready and not self._continuously:
                continue
            reason = plugin.unready()
            if reason:
                reasons.add((plugin.name, reason))
            else:
                self._was_ready.add(plugin)
        if reasons:
            names = ",".join(sorted({name for name, _ in reasons}))
            text = "\n".join([names, *(f"{name}: {reason}" for name, reason in sorted(reasons))])
            if text != self._last_reasons:
                # CoreDNS says so at every probe; once per change is enough.
                self._log.info(f'Plugins not ready: "{names}" ({"; ".join(text.splitlines()[1:])})')
            self._last_reasons = text
            return 503, _PLAIN, text.encode()
        self._last_reasons = ""
        return 200, _PLAIN, b"OK"
